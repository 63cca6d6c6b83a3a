"""The pictures that people look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastt2i.engine.pictures import CELL, sample_grid, save_curves


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


def test_captions_of_any_length_and_script() -> None:
    captions = ["", "w" * 500, "word " * 500, "красный круг", "κύκλος", "a\nb"]
    grid = sample_grid(colors(6, 32), captions, columns=3)
    assert grid.size == sample_grid(colors(6, 32), ["short"] * 6, columns=3).size


def test_curves_of_a_run(tmp_path: Path) -> None:
    records = [{"step": n, "d_adversarial": 1.0 / n, "g_region": 2.0} for n in range(1, 50)]
    records += [{"step": 50, "accuracy_all": 0.5, "r_precision": 0.2}]
    save_curves(records, tmp_path / "curves.png")
    with_curves = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    save_curves([], tmp_path / "empty.png")
    assert (with_curves < 250).sum() > (np.asarray(Image.open(tmp_path / "empty.png").convert("L")) < 250).sum()
