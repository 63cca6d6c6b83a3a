"""COCO captions: both places of images, both years, and everything that may be wrong in the JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.coco import coco_dataset
from fastt2i.data.sources.registry import detect_format
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]


@pytest.fixture
def coco(make_layout: Callable[[str, Path], str], tmp_path: Path) -> Path:
    return Path(make_layout("coco", tmp_path / "coco"))


def change(coco: Path, edit: Callable[[dict[str, Any]], object], part: str = "train2014") -> None:
    file = coco / "annotations" / f"captions_{part}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def problems(dataset: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in dataset.problems}


def test_images_in_a_folder_of_their_own_and_2017(coco: Path, numbers_in: Numbers) -> None:
    for part in ("train", "val"):
        (coco / "images").mkdir(exist_ok=True)
        (coco / f"{part}2014").rename(coco / "images" / f"{part}2017")
        annotations = coco / "annotations" / f"captions_{part}2014.json"
        annotations.rename(annotations.with_name(f"captions_{part}2017.json"))
    assert detect_format(str(coco)) == "coco"
    dataset = coco_dataset(coco)
    assert numbers_in(dataset) == list(range(9)) and dataset.problems == []
    assert dataset.keys[0] == "images/train2017/COCO_train2014_000000000000.jpg"


def test_a_share_is_held_out_without_the_validation_part(coco: Path, numbers_in: Numbers) -> None:
    shutil.rmtree(coco / "val2014")
    dataset = coco_dataset(coco, "heldout", 0.5)
    assert 0 < len(dataset) < 9 and set(numbers_in(dataset)) < set(range(9))
    told = "it is left out: there is no folder val2014 or images/val2014"
    assert problems(dataset) == {"annotations/captions_val2014.json": told}
    (coco / "annotations" / "captions_val2014.json").unlink()
    assert len(coco_dataset(coco, "all")) == 9


def test_of_two_years_the_one_with_images(coco: Path, numbers_in: Numbers) -> None:
    shutil.copy(coco / "annotations" / "captions_train2014.json", coco / "annotations" / "captions_train2017.json")
    assert numbers_in(coco_dataset(coco)) == list(range(9))
    shutil.copytree(coco / "train2014", coco / "train2017")
    with pytest.raises(UserError, match="has captions of several years: keep those of one"):
        coco_dataset(coco)


def test_broken_rows_are_told(coco: Path, numbers_in: Numbers, image_of: Callable[..., bytes]) -> None:
    (coco / "train2014" / "COCO_train2014_000000000000.jpg").unlink()
    (coco / "train2014" / "alone.jpg").write_bytes(image_of(1))
    images = [
        {"id": 5000, "file_name": "../../etc/passwd.jpg"},
        {"id": 1000 - 3, "file_name": "alone.jpg"},
        7,
        {"id": "x"},
    ]
    change(coco, lambda content: content["images"].extend(images))
    rows = [{"image_id": 77, "caption": "of nothing"}, {"image_id": 999, "caption": ["x"]}, None]
    rows.append({"image_id": 999, "caption": " one \n one\t" + "x" * 3_000_000})
    change(coco, lambda content: content["annotations"].extend(rows))
    dataset = coco_dataset(coco, "all")
    assert len(dataset) == 11 and len(dataset.captions[0]) == 3 and len(dataset.captions[0][2]) == 2000
    no_name = "no `id` with a number, or no `file_name` with a string"
    no_caption = "no `image_id` with a number, or no `caption` with a string"
    assert problems(dataset) == {
        "annotations/captions_train2014.json: images[0]": "there is no image train2014/COCO_train2014_000000000000.jpg",
        "annotations/captions_train2014.json: images[9]": "../../etc/passwd.jpg leaves the folder",
        "annotations/captions_train2014.json: images[10]": "the id 997 is that of "
        "train2014/COCO_train2014_000000000003.jpg already",
        "annotations/captions_train2014.json: images[11]": no_name,
        "annotations/captions_train2014.json: images[12]": no_name,
        "annotations/captions_train2014.json: annotations[18]": "there is no image of the id 77",
        "annotations/captions_train2014.json: annotations[19]": no_caption,
        "annotations/captions_train2014.json: annotations[20]": no_caption,
        "train2014/alone.jpg": "an image without a caption",
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "captions_train2014.json is not JSON: "),
        ('{"images": []}', "holds no captions: wanted are the arrays `images` and `annotations`"),
        ("[" * 100_000, "is not JSON: "),
        ('{"images": [], "annotations": []}', "there is no image with a caption to train on in"),
    ],
)
def test_a_broken_file_is_one_sentence(coco: Path, content: str, sentence: str) -> None:
    (coco / "annotations" / "captions_train2014.json").write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        coco_dataset(coco)
    assert "\n" not in str(caught.value)


def test_links_that_leave_are_not_followed(coco: Path, tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    (tmp_path / "outside.jpg").write_bytes(image_of(3))
    image = coco / "train2014" / "COCO_train2014_000000000003.jpg"
    image.unlink()
    image.symlink_to(tmp_path / "outside.jpg")
    dataset = coco_dataset(coco)
    assert len(dataset) == 8 and problems(dataset)[str(image.relative_to(coco))] == "a link that leaves the folder"
    annotations = coco / "annotations" / "captions_train2014.json"
    annotations.rename(tmp_path / "captions.json")
    annotations.symlink_to(tmp_path / "captions.json")
    with pytest.raises(UserError, match="is not a regular file of this folder"):
        coco_dataset(coco)
