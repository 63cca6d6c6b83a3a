"""The birds: boxes, classes, both kinds of official split, and what is missing or broken."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.cub import cub_dataset
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]
NAMES = [f"{n // 3 + 1:03d}.Class_{n // 3}/Bird_{n:04d}" for n in range(12)]


@pytest.fixture
def birds(make_layout: Callable[[str, Path], str], tmp_path: Path) -> Path:
    return Path(make_layout("cub", tmp_path / "birds"))


def problems(dataset: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in dataset.problems}


def test_boxes_are_attngans(birds: Path) -> None:
    (birds / "CUB_200_2011" / "bounding_boxes.txt").write_text(
        "\n".join(f"{n + 1} {n}.9 20.2 100.7 31.0" for n in range(12))
    )
    dataset = cub_dataset(birds, "all")
    assert dataset.crops is not None
    # r = int(100 * 0.75); the centre of the box as whole numbers: x = n + 50, y = int(20 + 31 / 2).
    assert dataset.crops.tolist() == [[n + 50 - 75, 35 - 75, n + 50 + 75, 35 + 75] for n in range(12)]


def test_classes_are_those_of_the_lists_or_the_folders(birds: Path) -> None:
    dataset = cub_dataset(birds)
    assert dataset.classes is not None and dataset.classes.dtype == np.int64
    assert dataset.classes.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    (birds / "train" / "class_info.pickle").unlink()
    dataset = cub_dataset(birds, "all")
    assert dataset.classes is not None and dataset.classes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_classes_of_another_number_are_not_used(birds: Path) -> None:
    (birds / "test" / "class_info.pickle").write_bytes(pickle.dumps([1, 2]))
    dataset = cub_dataset(birds, "heldout")
    assert dataset.classes is not None and dataset.classes.tolist() == [3, 3, 3]
    assert problems(dataset)["test/class_info.pickle"].startswith("it has 2 classes for the 3 names beside it")


def test_the_folder_above_and_captions_by_their_other_name(birds: Path, numbers_in: Numbers) -> None:
    (birds / "text").rename(birds / "CUB_200_2011" / "text_c10")
    assert sorted(numbers_in(cub_dataset(birds.parent))) == list(range(9))


def test_captions_and_lists_beside_the_images_folder(birds: Path, numbers_in: Numbers) -> None:
    (birds / "CUB_200_2011").rename(birds.parent / "CUB_200_2011")
    dataset = cub_dataset(birds.parent)
    assert sorted(numbers_in(dataset)) == list(range(9)) and dataset.problems == []


def test_the_split_of_the_set_itself_where_there_are_no_lists(birds: Path, numbers_in: Numbers) -> None:
    for side in ("train", "test"):
        shutil.rmtree(birds / side)
    rows = "\n".join(f"{n + 1} {int(n % 4 > 0)}" for n in range(12))
    (birds / "CUB_200_2011" / "train_test_split.txt").write_text(rows)
    assert numbers_in(cub_dataset(birds, "heldout")) == [0, 4, 8]
    (birds / "CUB_200_2011" / "train_test_split.txt").unlink()
    assert len(cub_dataset(birds, "all", 0.3)) == 12 and not cub_dataset(birds, "heldout", 0.0).keys


def test_one_list_gives_both_sides(birds: Path, numbers_in: Numbers) -> None:
    (birds / "test" / "filenames.pickle").unlink()
    assert numbers_in(cub_dataset(birds, "heldout")) == [9, 10, 11]


def test_what_is_missing_is_told(birds: Path, numbers_in: Numbers, image_of: Callable[..., bytes]) -> None:
    images, texts = birds / "CUB_200_2011" / "images", birds / "text"
    (images / f"{NAMES[0]}.jpg").unlink()
    (texts / f"{NAMES[1]}.txt").unlink()
    (texts / f"{NAMES[2]}.txt").write_text(" \n\n")
    (images / "001.Class_0" / "New.jpg").write_bytes(image_of(5))
    (texts / "001.Class_0" / "New.txt").write_text("a picture of five")
    (images / "001.Class_0" / "._New.jpg").write_bytes(b"resource fork")
    dataset = cub_dataset(birds)
    assert numbers_in(dataset) == [3, 4, 5, 6, 7, 8]
    found = problems(dataset)
    assert found[f"text/{NAMES[0]}.txt"] == "a caption file without an image"
    assert found[f"CUB_200_2011/images/{NAMES[1]}.jpg"] == "an image without a caption file"
    assert found[f"text/{NAMES[2]}.txt"] == "there is no caption in it"
    assert found["CUB_200_2011/images/001.Class_0/New.jpg"] == "it is in neither of the official lists"
    assert found[f"train/filenames.pickle: {NAMES[0]}"] == "there is no image, or no captions, of this name"
    assert not any("._New" in where for where in found)


def test_broken_boxes_leave_an_image_whole(birds: Path) -> None:
    rows = ["1 5 5 10 10", "2 nan 5 10 10", "3 5 5 1e400 10", "4 5 5 10", "99 1 1 1 1", "5 1 1 0 1", "6 5 5 x 10"]
    (birds / "CUB_200_2011" / "bounding_boxes.txt").write_text("\n".join(rows))
    dataset = cub_dataset(birds, "all")
    assert dataset.crops is not None
    assert dataset.crops[0].tolist() == [3, 3, 17, 17] and dataset.crops[1:, :2].tolist() == [[0, 0]] * 11
    assert problems(dataset)["CUB_200_2011/bounding_boxes.txt:4"] == "4 words where there should be 5"
    assert sum("used whole" in problem.what for problem in dataset.problems) == 11
    (birds / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    dataset = cub_dataset(birds, "all")
    assert dataset.crops is None
    assert problems(dataset)["CUB_200_2011/bounding_boxes.txt"] == "it is not there, so no image is cut to its box"


def test_links_that_leave_are_not_followed(birds: Path, tmp_path: Path) -> None:
    text = birds / "text" / f"{NAMES[3]}.txt"
    (tmp_path / "secret.txt").write_text("a secret")
    text.unlink()
    text.symlink_to(tmp_path / "secret.txt")
    dataset = cub_dataset(birds)
    assert problems(dataset)[f"text/{NAMES[3]}.txt"] == "a link that leaves the folder" and len(dataset) == 8
    (birds / "text").rename(tmp_path / "text")
    (birds / "text").symlink_to(tmp_path / "text")
    with pytest.raises(UserError, match="has no folder of captions"):
        cub_dataset(birds)


@pytest.mark.parametrize("missing", ["text", "CUB_200_2011"])
def test_half_of_the_set_is_one_sentence(birds: Path, missing: str) -> None:
    shutil.rmtree(birds / missing)
    wanted = "folder of captions (text, text_c10, " if missing == "text" else "folder CUB_200_2011/images"
    with pytest.raises(UserError) as caught:
        cub_dataset(birds)
    assert wanted in str(caught.value) and "the layout `cub` is CUB_200_2011/images/<class>" in str(caught.value)


def test_all_in_the_test_list(birds: Path) -> None:
    (birds / "train" / "filenames.pickle").unlink()
    (birds / "test" / "filenames.pickle").write_bytes(pickle.dumps(NAMES))
    with pytest.raises(UserError, match="is in the test list; there is nothing to train on"):
        cub_dataset(birds)
