"""The pictures that people look at."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastt2i.pictures.grids import CAPTION_LINES, CELL, FONT_SIZE, GAP, attention_sheet, sample_grid


def colors(count: int, size: int) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), (10 * n + 5, 0, 200)) for n in range(count)]


@pytest.mark.parametrize("size", [32, 256])
def test_every_image_is_in_the_grid_above_its_caption(size: int) -> None:
    images = colors(11, size)
    grid = np.asarray(sample_grid(images, [f"caption {n}" for n in range(11)], columns=4))
    cell = max(CELL, size)
    for n in range(11):
        pixels = (grid == np.asarray(images[n])[0, 0]).all(axis=2)
        assert pixels.sum() == cell**2
        rows, columns = pixels.nonzero()
        below = grid[rows.max() + 1 : rows.max() + 20, columns.min() : columns.max()]
        assert (below < 100).any(), n  # something is written there


def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels of an image in a sheet."""
    y, x = GAP + row * (CELL + CAPTION_LINES * (FONT_SIZE + 3) + GAP), GAP + column * (CELL + GAP)
    return sheet[y : y + CELL, x : x + CELL]


def test_every_keyword_has_its_attention_beside_its_image() -> None:
    attention = np.full((2, 5, 4, 4), 0.5 / 15, dtype=np.float32)
    places = [(0, 3), (2, 1), (3, 3), (1, 0)]
    for k, (y, x) in enumerate(places):
        attention[0, k, y, x] = 0.5
    attention[1] = 1 / 16
    words = [["red", "circle", "small", "left"], ["even"]]
    sheet = np.asarray(attention_sheet(colors(2, 32), ["a caption", "another"], words, attention, columns=4))
    for number, row in ((0, 0), (1, 2)):  # the first has more keywords than fit into a row
        assert (cell(sheet, row, 0) == np.asarray(colors(2, 32)[number])[0, 0]).all()
    for k, (y, x) in enumerate(places):
        shown = cell(sheet, k // 3, 1 + k % 3).astype(int).sum(axis=2)
        hottest = shown.reshape(4, CELL // 4, 4, CELL // 4).mean(axis=(1, 3))
        assert np.unravel_index(hottest.argmax(), (4, 4)) == (y, x)
    even, hot = (cell(sheet, *place).astype(int).sum(axis=2) for place in ((2, 1), (0, 1)))
    assert np.ptp(even) <= 6 and even.max() < hot.max() - 150  # even attention is not blown up
    assert (cell(sheet, 2, 2) == 255).all()  # nothing where there is no keyword


def test_the_sheet_of_captions_with_odd_keywords() -> None:
    attention = np.full((2, 2, 8, 8), 1 / 64, dtype=np.float32)
    sheet = attention_sheet(colors(2, 256), ["", "a\nb"], [[], ["w" * 300, "круг"]], attention)
    assert sheet.width == 3 * 256 + 4 * GAP


def test_captions_of_any_length_and_script() -> None:
    captions = ["", "w" * 500, "word " * 500, "красный круг", "κύκλος", "a\nb"]
    grid = sample_grid(colors(6, 32), captions, columns=3)
    assert grid.size == sample_grid(colors(6, 32), ["short"] * 6, columns=3).size
