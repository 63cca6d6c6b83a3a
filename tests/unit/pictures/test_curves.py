"""Curves of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastt2i.pictures.curves import save_curves


def test_curves_of_a_run(tmp_path: Path) -> None:
    records = [{"step": n, "d_adversarial": 1.0 / n, "g_region": 2.0} for n in range(1, 50)]
    records += [{"step": 50, "accuracy_all": 0.5, "r_precision": 0.2}]
    save_curves(records, tmp_path / "curves.png")
    with_curves = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    save_curves([], tmp_path / "empty.png")
    assert (with_curves < 250).sum() > (np.asarray(Image.open(tmp_path / "empty.png").convert("L")) < 250).sum()
