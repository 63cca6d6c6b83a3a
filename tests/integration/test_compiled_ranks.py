"""Several processes whose steps are compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.test_distributed import ENVIRONMENT, EXACT, QUIET, assert_same_run, run, succeeds


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    return [*tiny, *EXACT, *QUIET]


def test_two_compiled_processes_are_one_run(arguments: list[str], tmp_path: Path) -> None:
    """Networks are compiled, and losses that gather captions are not."""
    succeeds(0, [*arguments, "--out", str(tmp_path / "alone")])
    output = succeeds(2, [*arguments, "--engine.compile", "on", "--out", str(tmp_path / "compiled")])
    assert output.count("compiling; this takes a while") == 1
    assert_same_run(tmp_path / "compiled", tmp_path / "alone", bound=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gather", ["gather", "no-gather"])
def test_ranks_decide_of_compiling_together(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gather: str
) -> None:
    options = [*arguments, f"--loss.{gather}", "--out", str(tmp_path / "run")]
    output = succeeds(2, [*options, "--train.steps", "48", "--checkpoint.every", "48"])
    assert output.count("torch.compile is off: what is left takes") == 1
    monkeypatch.setitem(ENVIRONMENT, "CXX", "/bin/false")
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    result = run(2, [*options, "--resume", "--train.steps", "60", "--engine.compile", "on"])
    (sentence,) = re.findall(r"fastt2i: error: .*", result.stderr)
    assert result.returncode != 0
    # Of tracebacks there is torchrun's own, which does not come from here.
    assert "fastt2i/" not in re.sub(r"fastt2i/train.py FAILED", "", result.stderr), result.stderr
    assert re.search(r"engine.compile is on, but torch.compile fails here: .*No working C\+\+ compiler", sentence)
