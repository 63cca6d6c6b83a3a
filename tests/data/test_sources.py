"""What every source has in common: found by looking, images with their own captions, the set's own split."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fastt2i.config import DataConfig, DataFormat
from fastt2i.data.index import Index, open_index
from fastt2i.data.integrity import Decoder
from fastt2i.data.loaders import open_loader
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.table import SOURCES, choose
from fastt2i.errors import UserError

Numbers = Callable[[Index], list[int]]


def test_every_format_has_a_source() -> None:
    assert {"auto", *SOURCES} == set(get_args(DataFormat))


def test_a_layout_is_found_by_looking(layout: tuple[str, str]) -> None:
    format, path = layout
    assert choose(path) == format


def test_images_and_captions_stay_together(layout: tuple[str, str], numbers_in: Numbers) -> None:
    whole = open_index(layout[1], image_size=16, split="all")
    assert sorted(numbers_in(whole)) == list(range(12)) and whole.problems == []
    assert all(len(own) == 2 for own in whole.captions) and len(set(whole.keys)) == 12
    for key in whole.keys:
        key.encode()


def test_the_sets_own_split(layout: tuple[str, str], numbers_in: Numbers) -> None:
    format, path = layout
    assert sorted(numbers_in(open_index(path, format, image_size=16))) == list(range(9))
    assert sorted(numbers_in(open_index(path, format, image_size=16, split="heldout"))) == [9, 10, 11]


def test_another_process_reads_the_same(layout: tuple[str, str]) -> None:
    index = open_index(layout[1], image_size=16)
    read = pickle.loads(pickle.dumps(index.read))
    assert [read(sample) for sample in range(9)] == [index.read(sample) for sample in range(9)]


@pytest.mark.parametrize("kind", [{"workers": 2}, {"workers": 1, "loader": "pillow"}, {"loader": "dali"}])
def test_batches_keep_them_together_over_ranks_and_resumes(
    layout: tuple[str, str], numbers_in: Numbers, kind: dict[str, Any]
) -> None:
    """Content is compared with the index, whose images and captions belong together."""
    if kind.get("loader") == "dali":
        pytest.importorskip("nvidia.dali")
    index = open_index(layout[1], image_size=16)
    decode, table = Decoder.of(index, 16), index.caption_table()
    assert numbers_in(index)
    for rank in range(2):
        sampler = Sampler(table, batch_size=4, seed=1, flip=False, rank=rank, world_size=2)
        with open_loader(
            index, sampler, DataConfig(**kind), image_size=16, start_step=3 * rank, progress=False
        ) as loader:
            for _ in range(4):
                batch = next(loader)
                for image, caption, sample in zip(batch.images, batch.caption_ids, batch.samples, strict=True):
                    np.testing.assert_array_equal(image.numpy(), decode(int(sample)))
                    assert table.captions[caption] in index.captions[sample]


@pytest.mark.parametrize("format", [format for format in SOURCES if format not in ("shapes", "folder")])
def test_the_wrong_format_is_one_sentence(format: DataFormat, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing to train on")
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError) as caught:
            open_index(str(path), format, image_size=16)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_two_layouts_in_one_folder_are_told_apart_by_the_user(
    make_layout: Callable[[str, Path], str], numbers_in: Numbers, tmp_path: Path, image_of: Callable[..., bytes]
) -> None:
    make_layout("cub", tmp_path)
    (tmp_path / "a.jpg").write_bytes(image_of(5))
    (tmp_path / "a.txt").write_text("a picture of five")
    with pytest.raises(UserError, match=r"looks like several layouts \(`folder`: .*; `cub`: .*--data.format"):
        open_index(str(tmp_path), image_size=16)
    assert sorted(numbers_in(open_index(str(tmp_path), "cub", image_size=16))) == list(range(9))
    assert "a.jpg" in open_index(str(tmp_path), "folder", image_size=16, heldout=0).keys


@pytest.mark.parametrize("format", ["shapes", "cub", "coco", "flowers"])
def test_a_text_column_where_there_are_none_is_refused(format: DataFormat) -> None:
    with pytest.raises(UserError, match="captions are in no column: leave data.text_column empty"):
        open_index("shapes", format, image_size=16, text_column="caption")


def test_a_file_that_no_source_reads(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is a file that no source reads: give a folder, .tar or .parquet"):
        open_index(str(tmp_path / "data.zip"), image_size=16)
