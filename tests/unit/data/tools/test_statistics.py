"""What is said of a set's images and captions is what they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fastt2i.data.dataset import Dataset
from fastt2i.data.tools.statistics import ImageInfo, caption_lines, image_lines, read_image_info, spread


def of(contents: list[bytes]) -> Dataset:
    return Dataset(
        name="set",
        keys=[str(n) for n in range(len(contents))],
        captions=[("x",)] * len(contents),
        read=contents.__getitem__,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_headers_and_digests(picture: Callable[..., bytes], workers: int) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(turned, "JPEG", exif=exif)
    contents = [picture(1), picture(1), picture(2, (40, 20), "WEBP"), turned.getvalue(), b"<html>", b""]
    infos = read_image_info(of(contents), workers=workers, progress=False)
    assert [info[:3] for info in infos] == [
        ("PNG", 12, 10),
        ("PNG", 12, 10),
        ("WEBP", 40, 20),
        ("JPEG", 10, 30),
        ("", 0, 0),
        ("", 0, 0),
    ]
    assert [info.size for info in infos] == [len(content) for content in contents]
    lines = dict(image_lines(infos))
    assert lines["formats"] == "PNG: 2 (33.3%), no image: 2 (33.3%), WEBP: 1 (16.7%), JPEG: 1 (16.7%)"
    assert lines["width x height"] == "12 x 10: 2 (50.0%), 40 x 20: 1 (25.0%), 10 x 30: 1 (25.0%)"
    assert lines["shorter side"].endswith(
        "all within 10 to 20; 100.0% below 32, 100.0% below 64, 100.0% below 128, 100.0% below 256"
    )
    assert lines["duplicates"] == "1 images are copies of others, byte for byte"


def test_a_file_that_cannot_be_read() -> None:
    def read(sample: int) -> bytes:
        raise PermissionError("no")

    dataset = Dataset(name="set", keys=["a"], captions=[("x",)], read=read)
    infos = read_image_info(dataset, workers=0, progress=False)
    assert infos == [ImageInfo("", 0, 0, 0, b"")] and dict(image_lines(infos))["duplicates"] == "none"


def test_captions() -> None:
    dataset = Dataset(
        name="set",
        keys=["a", "b", "c"],
        captions=[("one two", "three"), ("one two",), ("four five six seven",)],
        read=lambda sample: b"",
    )
    lines = dict(caption_lines(dataset))
    assert lines["captions"] == "4, of which 3 are different; 1 of several images"
    assert lines["captions per image"] == "median 1, 90% within 1 to 2, all within 1 to 2"
    assert lines["words per caption"].startswith("median 2,") and lines["words per caption"].endswith("1 to 4")


def test_spreads() -> None:
    assert spread(np.arange(101), "px") == "median 50 px, 90% within 5 to 95, all within 0 to 100"
    assert spread(np.full(5, 1.5), "", ".2f") == "1.50, all of them"
