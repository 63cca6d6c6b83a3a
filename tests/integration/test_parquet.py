"""Parquet: columns of every usual kind, patterns and lists of files, and broken ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources import parquet as source
from fastt2i.data.sources.parquet import parquet_dataset
from fastt2i.data.sources.registry import detect_format
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]
pytestmark = pytest.mark.quick
ImageOf = Callable[..., bytes]


@pytest.fixture
def table(make_layout: Callable[[str, Path], str], tmp_path: Path) -> Path:
    return Path(make_layout("parquet", tmp_path / "set"))


def write(file: Path, **columns: object) -> str:
    parquet.write_table(pa.table(columns), file)
    return str(file)


def problems(dataset: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in dataset.problems}


def test_patterns_and_lists(table: Path, numbers_in: Numbers) -> None:
    first, second = (f"{table}/data/train-0000{n}-of-00002.parquet" for n in range(2))
    for path in (f"{table}/data/train-*.parquet", f"{table}/data/train-{{00000..00001}}-of-00002.parquet"):
        assert detect_format(path) == "parquet"
        assert numbers_in(parquet_dataset(path, "all")) == list(range(9))
    assert detect_format(f"{second}::{first}") == "parquet"
    dataset = parquet_dataset(f"{second}::{first}::{first}", "all")
    assert numbers_in(dataset) == [6, 7, 8, 0, 1, 2, 3, 4, 5]
    assert dataset.keys[0] == "train-00001-of-00002.parquet/00000000"
    assert problems(dataset) == {first: "it is named twice, and read once"}
    assert 0 < len(parquet_dataset(first, "heldout", 0.5)) < 6


def test_a_row_group_is_read_once_and_the_last_ones_stay(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(source, "_row_groups", source._RowGroups())
    original = source._read_group
    monkeypatch.setattr(source, "_read_group", lambda *what: read.append(what[2]) or original(*what))
    dataset = parquet_dataset(f"{table}/data/train-00000-of-00002.parquet", "all")
    assert read == []
    for sample in (0, 1, 4, 5, 0):
        dataset.read(sample)
    assert read == [0, 2]
    monkeypatch.setattr(source, "_CACHED_BYTES", 1)
    for sample in (2, 3, 0, 2):
        dataset.read(sample)
    assert read == [0, 2, 1, 0, 1]


def test_large_row_groups_are_warned_of(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_CACHED_BYTES", 1000)
    parquet_dataset(str(table))
    monkeypatch.setattr(source, "_LARGE_GROUP", 100)
    with pytest.warns(UserWarning, match="each image that is read at random reads a whole one"):
        parquet_dataset(str(table))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_plain_column_of_bytes_and_one_caption(
    tmp_path: Path, image_of: ImageOf, numbers_in: Numbers, kind: pa.DataType
) -> None:
    images = pa.array([image_of(n) for n in range(3)], kind)
    captions = ["a picture of zero", "one", "two"]
    key = pa.array([b"0", b"1", b"2"])
    path = write(tmp_path / "a.parquet", key=key, jpg=images, caption=captions, prompt=["nine"] * 3)
    assert numbers_in(parquet_dataset(path, "all")) == [0, 1, 2]
    path = write(tmp_path / "b.parquet", content=images, title=captions, text=["nine"] * 3)
    assert numbers_in(parquet_dataset(path, "all", text_column="title")) == [0, 1, 2]


def test_rows_without_captions_or_images(tmp_path: Path, image_of: ImageOf) -> None:
    images = [{"bytes": image_of(1), "path": None}] * 4 + [None, {"bytes": None, "path": "/etc/hostname"}]
    captions = ["one", None, " ", "x" * 3_000_000, "five", "six"]
    dataset = parquet_dataset(write(tmp_path / "a.parquet", image=images, text=captions), "all")
    assert [len(own[0]) for own in dataset.captions] == [3, 2000, 4, 3]
    assert problems(dataset) == {f"a.parquet/0000000{n}": "an image without a caption" for n in (1, 2)}
    assert dataset.read(1) == image_of(1)
    for sample in (2, 3):
        with pytest.raises(OSError, match="the row has no bytes of an image"):
            dataset.read(sample)


def test_folders_joined(table: Path, tmp_path: Path, image_of: ImageOf, numbers_in: Numbers) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "more.parquet", image=[image_of(12)], text=["one two"])
    path = f"{table}::{tmp_path}/other"
    assert detect_format(path) == "parquet"
    dataset = parquet_dataset(path, "all")
    assert sorted(numbers_in(dataset)) == list(range(13)) and "other/more.parquet/00000000" in dataset.keys


def test_broken_files(table: Path, numbers_in: Numbers) -> None:
    broken = table / "data" / "train-00000-of-00002.parquet"
    broken.write_bytes(broken.read_bytes()[:-50])
    (table / "data" / "train-00002-of-00002.parquet").write_bytes(b"")
    dataset = parquet_dataset(str(table))
    assert numbers_in(dataset) == [6, 7, 8]
    found = problems(dataset)
    assert set(found) == {"train-00000-of-00002.parquet", "train-00002-of-00002.parquet"}
    assert all(what.startswith("not a parquet file that can be read: ") and "\n" not in what for what in found.values())
    with pytest.raises(UserError, match="there is no image with a caption in .*not a parquet file"):
        parquet_dataset(str(broken))


def test_a_file_that_breaks_later_is_an_error_of_the_image(table: Path) -> None:
    file = table / "data" / "train-00000-of-00002.parquet"
    dataset = parquet_dataset(str(file), "all")
    file.write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(OSError, match=r"\w"):
        dataset.read(0)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"image": [b"x"], "label": ["one"]}, "has no column text or caption or captions or prompt: name the one with"),
        ({"picture": ["x"], "text": ["one"]}, "has no column `image` with bytes, .*; there are picture, text"),
        ({"a": [b"x"], "b": [b"x"], "text": ["one"]}, "it has several of bytes, a, b"),
        ({"image": [b"x"], "text": [7]}, "`text` is int, neither a string nor a list of strings"),
        ({"image": [{"bytes": 7}], "text": ["one"]}, "has no column `image` with bytes, .*; there are image, text"),
        ({"image": [{"bytes": "x"}], "text": ["one"]}, "has no column `image` with bytes, .*; there are image, text"),
        ({"image": [{"bytes": [b"x"]}], "text": ["one"]}, "has no column `image` with bytes, .*; there are image"),
        ({"image": [[b"x"]], "text": ["one"]}, "has no column `image` with bytes, .*; there are image, text"),
        ({"image": [[1, 2]], "text": ["one"]}, "has no column `image` with bytes, .*; there are image, text"),
    ],
)
def test_other_columns_are_one_sentence(tmp_path: Path, columns: dict[str, list[object]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parquet_dataset(write(tmp_path / "a.parquet", **columns), "all")
    assert "\n" not in str(caught.value)


def test_a_column_of_bytes_counts_beside_an_image_of_another_kind(
    tmp_path: Path, image_of: ImageOf, numbers_in: Numbers
) -> None:
    path = write(tmp_path / "a.parquet", image=[{"bytes": 3, "path": "x"}], scan=[image_of(4)], text=["four"])
    assert numbers_in(parquet_dataset(path, "all")) == [4]


def flip_a_fatal_bit(file: Path) -> None:
    """`image` is said to be required where it was optional: the footer's statistics then contradict its schema."""
    optional, required = (b"\x35" + repetition + b"\x18\x05image" for repetition in (b"\x02", b"\x00"))
    content = file.read_bytes()
    assert content.count(optional) == 1
    file.write_bytes(content.replace(optional, required))


def test_a_footer_that_makes_pyarrow_abort(table: Path, numbers_in: Numbers) -> None:
    first, second, heldout = sorted((table / "data").iterdir(), key=lambda file: ("test" in file.name, file.name))
    flip_a_fatal_bit(first)
    code = "import sys; from pyarrow import parquet; parquet.ParquetFile(sys.argv[1]).metadata.row_group(0).column(0)"
    if subprocess.run([sys.executable, "-c", code, first], capture_output=True).returncode != -signal.SIGABRT:
        pytest.skip("this pyarrow does not abort")
    dataset = parquet_dataset(str(table), "all")
    assert sorted(numbers_in(dataset)) == [6, 7, 8, 9, 10, 11]
    aborts = "its footer is damaged: reading it ends the process that tries"
    assert problems(dataset) == {first.name: f"not a parquet file that can be read: {aborts}"}
    flip_a_fatal_bit(heldout)
    assert numbers_in(parquet_dataset(str(table), "all")) == [6, 7, 8]
    flip_a_fatal_bit(second)
    with pytest.raises(UserError, match=f"there is no image with a caption in .*{aborts}"):
        parquet_dataset(str(table))


def test_a_process_that_does_not_start_is_no_damage_of_the_files(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program, sentence in (("/bin/false", "fails: it exits with 1"), ("/no/python", "No such file or directory")):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(UserError, match=f"process .* parquet files.* {sentence}"):
            parquet_dataset(str(table))


def test_footers_are_looked_at_by_one_process(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *command, **more: started.append(command) or run(*command, **more))
    assert len(parquet_dataset(str(table), "all")) == 12 and len(started) == 1


def test_links_that_leave_a_folder_are_named_to_be_read(table: Path, tmp_path: Path, numbers_in: Numbers) -> None:
    """As the hub's cache has them."""
    (tmp_path / "snapshot").mkdir()
    for file in (table / "data").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    with pytest.raises(UserError, match="a link that leaves the folder; files that are named are read"):
        parquet_dataset(str(tmp_path / "snapshot"))
    assert numbers_in(parquet_dataset(f"{tmp_path}/snapshot/*.parquet")) == list(range(9))


def test_img2datasets_tables_are_no_sets(table: Path, tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    write(tmp_path / "00000.parquet", url=["x"], caption=["one"])
    assert detect_format(str(tmp_path)) == "folder"


def test_without_pyarrow(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="reading parquet takes pyarrow: install it with pip install"):
        parquet_dataset(str(table))


def test_a_file_that_is_written_anew_gives_its_new_images(image_of: ImageOf, tmp_path: Path) -> None:
    """In one process, which has read the old ones and keeps them."""
    path = tmp_path / "train.parquet"
    for number in (1, 2):
        image = image_of(number)
        dataset = parquet_dataset(write(path, image=[{"bytes": image, "path": "a"}], text=[f"number {number}"]), "all")
        assert dataset.read(0) == image
        os.utime(path, ns=(number, number))  # clocks of file systems are coarse
        dataset = parquet_dataset(str(path), "all")
        assert dataset.read(0) == image
