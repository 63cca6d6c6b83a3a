"""Curves of losses and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def save_curves(records: Sequence[dict[str, float]], path: Path, scored: str = "held-out") -> None:
    """Losses and scores over the steps, from the lines of `metrics.jsonl`; scored: on which captions."""
    from matplotlib.figure import Figure

    panels = {
        "Discriminator's losses": _series(records, "d_"),
        "Generator's losses": _series(records, "g_"),
        f"Scores on {scored} captions": _series(records, "accuracy_") | _series(records, "r_precision"),
        "Spread of images of one caption": _series(records, "spread_of_real") or _series(records, "spread"),
    }
    if evaluated := _series(records, "eval_kid"):
        panels["KID (EfficientNet-Lite0) and R-precision of evaluations"] = evaluated | _series(
            records, "eval_r_precision"
        )
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
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
