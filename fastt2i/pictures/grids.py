"""Grids of samples with their captions, and of the attention of keywords over images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 128
GAP = 8
FONT_SIZE = 11
CAPTION_LINES = 5
MIN_PEAK = 3.0


class _Cell(NamedTuple):
    """An image with a text under it."""

    row: int
    column: int
    image: Image.Image
    lines: list[str]


def sample_grid(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Images in rows with their captions under them."""
    size = max(CELL, images[0].width)
    columns = min(columns, len(images))
    pairs = enumerate(zip(images, captions, strict=True))
    return _sheet([_Cell(k // columns, k % columns, image, _wrap(text, size)) for k, (image, text) in pairs], size)


def variation_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """A row for each caption: several images of it, the caption under the first."""
    size = max(CELL, rows[0][0].width)
    return _sheet(
        [
            _Cell(row, column, image, [] if column else _wrap(caption, size))
            for row, (images, caption) in enumerate(zip(rows, captions, strict=True))
            for column, image in enumerate(images)
        ],
        size,
    )


def attention_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    words: Sequence[Sequence[str]],
    attention: NDArray[np.float32],
    columns: int = 9,
) -> Image.Image:
    """One or more rows for each image: the image with its caption, then the attention map of each keyword.

    Under a keyword stands its highest attention as a multiple of the uniform one. Colours run from 0 to that, or to
    `MIN_PEAK` times the uniform one where it is less: attention that is nearly uniform looks so.

    Args:
        images: N square images.
        captions: of the images.
        words: the keywords of each caption.
        attention: (N, T, H, W), a map for each keyword, which sums to 1.
        columns: of the sheet.
    """
    size = max(CELL, images[0].width)
    cells, row, beside = [], 0, columns - 1
    for image, caption, own, maps in zip(images, captions, words, attention, strict=True):
        cells.append(_Cell(row, 0, image, _wrap(caption, size)))
        for k, (word, map_) in enumerate(zip(own, maps, strict=False)):  # after the last keyword there are no maps
            lines = [*_wrap(word, size)[: CAPTION_LINES - 1], f"{map_.max() * map_.size:.1f} ×"]
            cells.append(_Cell(row + k // beside, 1 + k % beside, _heated(image, map_, size), lines))
        row += max(1, -(-len(own) // beside))
    return _sheet(cells, size)


def _heated(image: Image.Image, attention: NDArray[np.float32], size: int) -> Image.Image:
    """The image in grey, under the colours of an attention map (H, W)."""
    import matplotlib

    share = attention * attention.size
    heat = Image.fromarray(share / max(MIN_PEAK, share.max())).resize((size, size), Image.Resampling.BICUBIC)
    colors = matplotlib.colormaps["inferno"](np.asarray(heat).clip(0, 1))[..., :3] * 255
    grey = np.asarray(image.convert("L").resize((size, size), Image.Resampling.NEAREST), dtype=np.float32)[..., None]
    return Image.fromarray((0.25 * grey + 0.75 * colors).round().astype(np.uint8))


def _sheet(cells: Sequence[_Cell], size: int) -> Image.Image:
    line_height = FONT_SIZE + 3
    width, height = size + GAP, size + CAPTION_LINES * line_height + GAP
    rows, columns = 1 + max(cell.row for cell in cells), 1 + max(cell.column for cell in cells)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, column, image, lines in cells:
        x, y = GAP + column * width, GAP + row * height
        # Nearest neighbour: artefacts must stay visible.
        sheet.paste(image.resize((size, size), Image.Resampling.NEAREST), (x, y))
        for n, line in enumerate(lines):
            draw.text((x, y + size + 2 + n * line_height), line, fill="black", font=font())
    return sheet


def _wrap(caption: str, width: int) -> list[str]:
    words = " ".join(caption.split())
    per_line = max(1, int(width * len(words) / max(1.0, font().getlength(words))))
    while True:
        lines = textwrap.wrap(words, per_line, max_lines=CAPTION_LINES, placeholder=" …")
        # Letters differ in width, so the first guess may be too wide; the placeholder needs room itself.
        if per_line <= 8 or all(font().getlength(line) <= width for line in lines):
            return lines
        per_line -= 1


@cache
def font(size: int = FONT_SIZE, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: it comes with Matplotlib and has far more scripts than Pillow's own font."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)
