"""What every source has in common: found by looking, images with their own captions, the set's own split."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest

from fastt2i.config import DataConfig, DataFormat
from fastt2i.data.dataset import Dataset
from fastt2i.data.loaders.choose import choose_loader
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.open import open_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.registry import FORMATS, detect_format
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]


def test_every_format_has_a_source() -> None:
    assert {"auto", *FORMATS} == set(get_args(DataFormat))


def test_a_layout_is_found_by_looking(layout: tuple[str, str]) -> None:
    format, path = layout
    assert detect_format(path) == format


def test_images_and_captions_stay_together(layout: tuple[str, str], numbers_in: Numbers) -> None:
    whole = open_dataset(layout[1], image_size=16, split="all")
    assert sorted(numbers_in(whole)) == list(range(12)) and whole.problems == []
    assert all(len(own) == 2 for own in whole.captions) and len(set(whole.keys)) == 12
    for key in whole.keys:
        key.encode()


def test_the_sets_own_split(layout: tuple[str, str], numbers_in: Numbers) -> None:
    format, path = layout
    assert sorted(numbers_in(open_dataset(path, format, image_size=16))) == list(range(9))
    assert sorted(numbers_in(open_dataset(path, format, image_size=16, split="heldout"))) == [9, 10, 11]


def test_another_process_reads_the_same(layout: tuple[str, str]) -> None:
    dataset = open_dataset(layout[1], image_size=16)
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [read(sample) for sample in range(9)] == [dataset.read(sample) for sample in range(9)]


@pytest.mark.parametrize("kind", [{"workers": 2}, {"workers": 0, "loader": "pillow"}, {"loader": "dali"}])
def test_batches_keep_them_together_over_epochs_ranks_and_resumes(
    layout: tuple[str, str], number_in: Callable[..., int], kind: dict[str, Any]
) -> None:
    """By content: the number that an image shows is the one that its caption says, and no mismatched one does."""
    if kind.get("loader") == "dali":
        pytest.importorskip("nvidia.dali")
    dataset = open_dataset(layout[1], image_size=16)
    table = dataset.caption_table()

    def numbers(first: int, **ranks: int) -> list[list[tuple[int, int]]]:
        """What is shown and what the mismatched caption says, of each sample from a step to the ninth."""
        sampler = Sampler(table, batch_size=4, seed=1, flip=False, **ranks)
        steps = []
        config = DataConfig(**kind)
        name = choose_loader(dataset, sampler, config, image_size=16, device=None).name
        with open_loader(
            dataset, sampler, config, image_size=16, name=name, start_step=first, progress=False
        ) as loader:
            for batch in islice(loader, 9 - first):
                shown = [number_in(image) for image in batch.images.numpy()]
                said, unfit = ([number_in(table.captions[c]) for c in ids] for ids in (batch[1], batch[2]))
                assert said == shown
                steps.append(list(zip(shown, unfit, strict=True)))
        return steps

    whole = numbers(0)
    assert numbers(5) == whole[5:]
    first, second = (numbers(0, rank=rank, world_size=2) for rank in range(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    order = [shown for step in whole for shown, _ in step]
    epochs = [order[start : start + 9] for start in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs) and len(set(map(tuple, epochs))) == 4
    assert all(shown != unfit for step in whole for shown, unfit in step)


@pytest.mark.parametrize("format", [format for format in FORMATS if format not in ("shapes", "folder")])
def test_the_wrong_format_is_one_sentence(format: DataFormat, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing to train on")
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError) as caught:
            open_dataset(str(path), format, image_size=16)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_two_layouts_in_one_folder_are_told_apart_by_the_user(
    make_layout: Callable[[str, Path], str], numbers_in: Numbers, tmp_path: Path, image_of: Callable[..., bytes]
) -> None:
    make_layout("cub", tmp_path)
    (tmp_path / "a.jpg").write_bytes(image_of(5))
    (tmp_path / "a.txt").write_text("a picture of five")
    with pytest.raises(UserError, match=r"looks like several layouts \(`folder`: .*; `cub`: .*--data.format"):
        open_dataset(str(tmp_path), image_size=16)
    assert sorted(numbers_in(open_dataset(str(tmp_path), "cub", image_size=16))) == list(range(9))
    assert "a.jpg" in open_dataset(str(tmp_path), "folder", image_size=16, heldout=0).keys


@pytest.mark.parametrize("format", ["shapes", "cub", "coco", "flowers"])
def test_a_text_column_where_there_are_none_is_refused(format: DataFormat) -> None:
    with pytest.raises(UserError, match="captions are in no column: leave data.text_column empty"):
        open_dataset("shapes", format, image_size=16, text_column="caption")


def test_a_file_that_no_source_reads(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is a file that no source reads: give a folder, .tar or .parquet"):
        open_dataset(str(tmp_path / "data.zip"), image_size=16)
