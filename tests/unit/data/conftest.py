"""Small captioned images for the tests of the data part."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _picture(seed: int, size: tuple[int, int] = (12, 10), format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture(seed, size=(width, height), format="PNG"): the content of an image file, different for each seed."""
    return _picture


@pytest.fixture
def captioned_folder(tmp_path: Path) -> Callable[..., Path]:
    """captioned_folder(count, bad=()): images 000.png, 001.png ... with captions; those in `bad` cannot be decoded."""

    def make(count: int, bad: tuple[int, ...] = ()) -> Path:
        folder = tmp_path / f"folder-{count}-{len(bad)}"
        folder.mkdir()
        for number in range(count):
            content = _picture(number)
            (folder / f"{number:03d}.png").write_bytes(content[: len(content) // 2] if number in bad else content)
            (folder / f"{number:03d}.txt").write_text(f"picture {number}\nnumber {number} again\n")
        return folder

    return make
