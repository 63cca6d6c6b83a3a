"""The flowers, in the places where the field keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.flowers import flowers_dataset
from fastt2i.data.sources.registry import detect_format
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]


@pytest.fixture
def flowers(make_layout: Callable[[str, Path], str], tmp_path: Path) -> Path:
    return Path(make_layout("flowers", tmp_path / "flowers"))


def test_classes_are_those_of_the_lists_or_the_folders_of_captions(flowers: Path) -> None:
    dataset = flowers_dataset(flowers)
    assert dataset.classes is not None and dataset.classes.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    shutil.rmtree(flowers / "train")
    shutil.rmtree(flowers / "test")
    dataset = flowers_dataset(flowers, "all")
    assert dataset.classes is not None and dataset.classes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_layout_of_df_gan(flowers: Path, numbers_in: Numbers) -> None:
    """Images further down, captions without class folders; then only the lists know the classes."""
    (flowers / "oxford-102-flowers").mkdir()
    (flowers / "jpg").rename(flowers / "oxford-102-flowers" / "images")
    (flowers / "text").mkdir()
    for text in flowers.glob("text_c10/*/*.txt"):
        text.rename(flowers / "text" / text.name)
    shutil.rmtree(flowers / "text_c10")
    assert detect_format(str(flowers)) == "flowers"
    dataset = flowers_dataset(flowers, "all")
    assert numbers_in(dataset) == list(range(12)) and dataset.classes is not None and dataset.problems == []
    (flowers / "train" / "class_info.pickle").unlink()
    assert flowers_dataset(flowers).classes is None


def test_two_captions_files_of_one_name(flowers: Path, numbers_in: Numbers) -> None:
    (flowers / "text_c10" / "class_00009").mkdir()
    (flowers / "text_c10" / "class_00009" / "image_00001.txt").write_text("something else")
    dataset = flowers_dataset(flowers)
    assert numbers_in(dataset) == list(range(9))
    (problem,) = dataset.problems
    assert problem.where == "text_c10/class_00009/image_00001.txt"
    assert problem.what == "it goes by the same name as text_c10/class_00001/image_00001.txt, which is taken"


def test_without_captions(flowers: Path) -> None:
    shutil.rmtree(flowers / "text_c10")
    with pytest.raises(UserError, match=r"has no folder of captions \(text, text_c10\); the layout `flowers` is jpg/"):
        flowers_dataset(flowers)
    (flowers / "text").mkdir()
    with pytest.raises(UserError, match="none of the 12 images in .* has a caption: "):
        flowers_dataset(flowers)
