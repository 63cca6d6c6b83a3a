"""What a run keeps says what it was made with, and holds no weight that is not finite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastt2i import train
from fastt2i.errors import UserError


def test_settings_that_change_on_the_way_are_told(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever changed them: an option, an editor, or the disk."""
    out = tmp_path / "run"
    train.main([*tiny, "--train.steps", "2", "--out", str(out)])
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("  sentence: 0.2", "  sentence: 0.5"))
    assert train.main(["--out", str(out), "--resume", "--train.steps", "4"]) == 0
    told = capsys.readouterr().out
    assert "settings changed since then: loss.sentence 0.5 (was 0.2), train.steps 4 (was 2)\n" in told
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert "settings changed" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_told_and_not_saved(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient ruins a weight after the last loss that a checkpoint is preceded by."""
    from fastt2i.engine.ema import Ema

    update, calls = Ema.update, []

    def ruin(ema: Ema[torch.nn.Module], weight: torch.Tensor) -> None:
        update(ema, weight)
        calls.append(weight)
        if len(calls) == 4:
            next(ema.module.parameters()).view(-1)[0] = float("nan")

    monkeypatch.setattr(Ema, "update", ruin)
    out = tmp_path / "run"
    sentence = r"\S+ of the ema is not finite after step 4, and is not saved; .*step-00000002;"
    with pytest.raises(UserError, match=sentence):
        train.main([*tiny, "--out", str(out)])
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model" / "generator.safetensors").values())


def test_a_run_that_was_killed_after_its_last_checkpoint_is_completed(tiny: list[str], tmp_path: Path) -> None:
    """Its model folder is of an earlier step then, and a part of an old checkpoint is left."""
    out = tmp_path / "run"
    train.main([*tiny, "--train.steps", "4", "--out", str(out)])
    shutil.copytree(out / "model", tmp_path / "earlier")
    train.main(["--out", str(out), "--resume", "--train.steps", "6"])
    last = {path.name: path.read_bytes() for path in (out / "model").glob("*.safetensors")}
    shutil.rmtree(out / "model")
    (tmp_path / "earlier").rename(out / "model")
    for leftover in ("checkpoints/.step-00000002.old", "checkpoints/.step-00000005.tmp", ".model.old"):
        (out / leftover).mkdir()
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert {path.name: path.read_bytes() for path in (out / "model").glob("*.safetensors")} == last
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert not (out / ".model.old").exists()
