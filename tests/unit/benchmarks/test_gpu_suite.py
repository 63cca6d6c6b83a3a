"""The whole flow of the suite that gathers evidence on a GPU, without one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_suite import GRACE, Stage
from benchmarks.harness.result import read_result
from benchmarks.kernels.table import ROOT


def test_the_whole_flow(tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), "--device", "cpu", "--tiny"]
    done = subprocess.run([*command, "--minutes", "15"], cwd=ROOT, capture_output=True, text=True)
    summary = json.loads((out / "summary.json").read_text())
    told = "\n".join(f"{s}\n{(out / (s['stage'] + '.log')).read_text()[-2000:]}" for s in summary)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{told}"
    names = ["tests", "limits", "operators", "steps", "training", "loaders"]
    assert [stage["stage"] for stage in summary] == names
    assert {stage["result"] for stage in summary} == {"passed"}
    assert "passed" in (out / "tests.log").read_text()
    assert json.loads((out / "limits.json").read_text())["copy_bytes_per_second"] > 0
    for name, operator in (("operators", "text features"), ("steps", "training step"), ("loaders", "decode")):
        assert operator in read_result(out / f"{name}.json").operators
        assert (out / f"{name}-report" / "index.html").is_file()
    training = json.loads((out / "training" / "training.json").read_text())
    assert training["steps"] >= 4 and training["images_per_second"] > 0
    assert (out / "training" / "curves.png").is_file() and list((out / "training" / "samples").glob("*.png"))
    table = done.stdout[done.stdout.index("\n\n") :]
    assert "training step" in table and "text features" in table and table.count("passed") == len(names)


def sleeping(seconds: float, last_words: str = "") -> list[str]:
    code = f"import time\nprint('begun', flush=True)\ntry: time.sleep({seconds})\nfinally: print({last_words!r})"
    return [sys.executable, "-c", code]


def test_a_stage_ends_when_its_time_is_over_and_those_after_it_still_run(tmp_path: Path) -> None:
    began = time.monotonic()
    stages = [
        Stage("long", 2, lambda seconds: [sleeping(300, "interrupted"), sleeping(300)]),
        Stage("missing", 100, lambda seconds: [sleeping(300)], needs="no.such.module"),
        Stage("broken", 1, lambda seconds: [[sys.executable, "-c", "raise SystemExit('it is broken')"], sleeping(0)]),
        Stage("short", 1, lambda seconds: [sleeping(0, f"{seconds:.0f}")]),
    ]
    outcomes = list(gpu_suite._run(stages, tmp_path, GRACE + 14))
    assert time.monotonic() - began < GRACE + 20
    assert [outcome.result for outcome in outcomes] == [
        "stopped", "left out: no.such.module is not installed", "failed", "passed",
    ]  # fmt: skip
    log = (tmp_path / "long.log").read_text()
    assert "begun" in log and "interrupted" in log and log.count("begun") == 1  # the second command was never begun
    assert outcomes[2].said == "begun"  # the last line of its second command, which passed; the first made it fail
    assert "it is broken" in (tmp_path / "broken.log").read_text()


def test_what_has_no_time_left_is_left_out(tmp_path: Path) -> None:
    [outcome] = gpu_suite._run([Stage("late", 1, lambda seconds: [sleeping(300)])], tmp_path, GRACE - 1)
    assert outcome.result == "left out: the time is over"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--out", str(tmp_path / "evidence")]) != 0
    said = capsys.readouterr().err
    assert "torch sees no GPU here" in said and "--tiny" in said and not (tmp_path / "evidence").exists()
