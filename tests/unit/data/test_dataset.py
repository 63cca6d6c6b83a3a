"""The dataset, its caption table, and which source a path names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastt2i.data.dataset import Dataset
from fastt2i.data.open import open_dataset
from fastt2i.errors import UserError


def index_of(*captions: tuple[str, ...]) -> Dataset:
    return Dataset(name="test", keys=[str(i) for i in range(len(captions))], captions=captions, read=lambda i: b"")


def test_caption_table_numbers_distinct_captions_by_first_appearance() -> None:
    table = index_of(("b", "a"), ("a",), ("c", "b", "d")).caption_table()
    assert table.captions == ["b", "a", "c", "d"]
    assert table.offsets.tolist() == [0, 2, 3, 6] and table.offsets.dtype == np.int64
    assert table.ids.tolist() == [0, 1, 1, 2, 0, 3] and table.ids.dtype == np.int64
    assert table.of(2).tolist() == [2, 0, 3]
    assert len(table) == 3


def test_caption_table_of_nothing() -> None:
    table = index_of().caption_table()
    assert table.captions == [] and table.offsets.tolist() == [0] and len(table.ids) == 0


def test_first() -> None:
    dataset = index_of(("a",), ("b",), ("c",))
    assert list(dataset.head(2)) == [("0", ("a",)), ("1", ("b",))]
    assert len(dataset.head(9)) == 3


def test_the_word_shapes_is_the_embedded_set(
    monkeypatch: pytest.MonkeyPatch, captioned_folder: Callable[..., Path]
) -> None:
    folder = captioned_folder(3)
    folder.rename(folder.with_name("shapes"))
    monkeypatch.chdir(folder.parent)
    assert len(open_dataset("shapes", image_size=32)) == 4608
    assert len(open_dataset("shapes", "shapes", image_size=32, split="heldout")) == 128
    for path, format in (("./shapes", "auto"), ("shapes", "folder")):
        assert len(open_dataset(path, format, image_size=32, heldout=0)) == 3


def test_the_format_shapes_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data format is `shapes` but the path is"):
        open_dataset(str(tmp_path), "shapes", image_size=32)


def test_a_folder_is_split_as_asked(captioned_folder: Callable[..., Path]) -> None:
    folder = str(captioned_folder(40))
    parts = {s: open_dataset(folder, image_size=32, split=s, heldout=0.2) for s in ("train", "heldout", "all")}
    assert len(parts["all"]) == 40
    assert sorted([*parts["train"].keys, *parts["heldout"].keys]) == list(parts["all"].keys)
    assert 2 <= len(parts["heldout"]) <= 16


def test_sides_and_selections_keep_everything_together() -> None:
    dataset = Dataset(
        name="test",
        keys=list("abcde"),
        captions=[(letter,) for letter in "abcde"],
        read=lambda sample: b"abcde"[sample : sample + 1],
        classes=np.array([4, 3, 2, 1, 0]),
        crops=np.arange(20).reshape(5, 4),
        heldout=np.array([False, True, False, True, False]),
    )
    for part, letters in (
        (dataset.split("train"), "ace"),
        (dataset.split("heldout"), "bd"),
        (dataset.split("all"), "abcde"),
    ):
        assert list(part) == [(letter, (letter,)) for letter in letters]
        assert [part.read(sample).decode() for sample in range(len(part))] == list(letters)
        assert part.classes is not None and part.crops is not None
        assert (4 - part.classes).tolist() == [ord(letter) - ord("a") for letter in letters]
        assert (part.crops[:, 0] // 4).tolist() == (4 - part.classes).tolist()
    nested = dataset.split("train").select(np.array([2, 0])).head(1)
    assert list(nested.keys) == ["e"] and nested.read(0) == b"e"
    assert len(index_of(("a",)).split("heldout")) == 0 and len(index_of(("a",)).split("train")) == 1


def test_too_many_images_without_captions_are_refused(captioned_folder: Callable[..., Path]) -> None:
    folder = captioned_folder(100)
    for number in range(6):
        (folder / f"{number:03d}.txt").unlink()
    assert len(open_dataset(str(folder), image_size=16, split="all", max_bad_fraction=0.06)) == 94
    sentence = r"6 of 100 images of .* have no caption, more than the fraction 0.05 .*; the first is 000.png"
    with pytest.raises(UserError, match=sentence):
        open_dataset(str(folder), image_size=16, max_bad_fraction=0.05)
    small = captioned_folder(3)
    (small / "000.txt").write_text("\n")
    assert len(open_dataset(str(small), image_size=16, split="all", max_bad_fraction=0.05)) == 2
