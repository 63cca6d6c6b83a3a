"""Pictures for people: a grid of samples with their captions, and curves of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 128
FONT_SIZE = 11
CAPTION_LINES = 5


def sample_grid(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Images in rows with their captions under them."""
    size = max(CELL, images[0].width)
    line_height = FONT_SIZE + 3
    gap = 8
    width, height = size + gap, size + CAPTION_LINES * line_height + gap
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    draw = ImageDraw.Draw(grid)
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + k % columns * width, gap + k // columns * height
        # Whole pixels stay visible as such: people look for artefacts in a grid.
        grid.paste(image.resize((size, size), Image.Resampling.NEAREST), (x, y))
        for n, line in enumerate(_wrap(caption, size)):
            draw.text((x, y + size + 2 + n * line_height), line, fill="black", font=font())
    return grid


def _wrap(caption: str, width: int) -> list[str]:
    per_line = max(1, int(width * len(caption) / max(1.0, font().getlength(" ".join(caption.split())))))
    return textwrap.wrap(caption, per_line, max_lines=CAPTION_LINES, placeholder=" …")


@cache
def font(size: int = FONT_SIZE, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: it comes with Matplotlib and has far more scripts than Pillow's own font."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def save_curves(records: Sequence[dict[str, float]], path: Path, scored: str = "held-out") -> None:
    """Losses and scores over the steps, from the lines of `metrics.jsonl`; scored: on which captions."""
    from matplotlib.figure import Figure

    panels = {
        "Discriminator's losses": _series(records, "d_"),
        "Generator's losses": _series(records, "g_"),
        f"Scores on {scored} captions": _series(records, "accuracy_") | _series(records, "r_precision"),
    }
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "", linewidth=1.2)
        if series:
            axes.legend(fontsize=8)
        if title.startswith("Scores"):
            axes.set_ylim(0, 1.02)
    figure.savefig(path, dpi=110)


def _series(records: Sequence[dict[str, float]], prefix: str) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefix):
                series.setdefault(name, []).append((record["step"], value))
    return series
