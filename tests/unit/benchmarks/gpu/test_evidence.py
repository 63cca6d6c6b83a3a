"""Lines of cases and the archive: whole whenever they are read, and no larger than may come back."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite as stages
from benchmarks.gpu import evidence as evidence_file
from benchmarks.gpu.case_log import Case, CaseLog, run_cases
from benchmarks.gpu.evidence import Evidence


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    log = CaseLog(tmp_path / "cases.jsonl")
    assert log.records() == [] and log.running("steps") is None
    log.append("steps", "a", "passed", ms=[1.0, 2.0, 3.0])
    log.append("steps", "b", "begun", limit=3)
    assert log.running("steps")["case"] == "b" and log.running("smoke") is None  # type: ignore[index]
    with log.path.open("a") as file:
        file.write('{"stage": "steps", "case": "b", "sta')
    assert log.finished() == {("steps", "a"): {"stage": "steps", "case": "a", "state": "passed", "ms": [1.0, 2.0, 3.0]}}


def test_cases_that_have_ended_are_not_run_again(tmp_path: Path) -> None:
    log, ran = CaseLog(tmp_path / "cases.jsonl"), []

    def fails() -> dict[str, object]:
        ran.append("b")
        raise RuntimeError("no memory")

    cases = [Case("a", lambda: ran.append("a") or {"x": 1}), Case("b", fails), Case("c", lambda: {})]  # type: ignore[func-returns-value]
    log.append("steps", "c", "stopped", error="it took more than 60 s")
    assert run_cases("steps", cases, log) == 1 and run_cases("steps", cases, log) == 1
    assert ran == ["a", "b"]
    assert log.finished()["steps", "b"]["error"] == "RuntimeError: no memory"
    assert run_cases("limits", [Case("a", lambda: {})], log) == 0  # another stage's case of this name


def test_the_archive_keeps_small_files_and_tells_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_file, "LARGEST", 100_000)
    kept = Evidence(tmp_path / "out", tmp_path / "work")
    (kept.work / "large.bin").write_bytes(random.Random(0).randbytes(200_000))
    (kept.work / "folder").mkdir()
    (kept.work / "folder" / "small.log").write_text("said")
    kept.pack()
    with tarfile.open(tmp_path / "out" / "evidence.tar.gz") as archive:
        assert archive.getnames() == ["folder/small.log"]
    assert "large.bin" in (tmp_path / "out" / "left-out.json").read_text()


def test_the_second_part_runs_again_what_failed(tmp_path: Path) -> None:
    kept = Evidence(tmp_path / "out", tmp_path / "work")
    before = CaseLog(kept.work / "cases-1.jsonl")
    before.append("tests", "tests/a.py::test_b", "failed")
    before.append("tests", "tests/a.py::test_c", "passed")
    before.append("steps", "256px", "stopped")
    by_name = {stage.name: stage for stage in stages.second_part(kept, [], tiny=False)}
    [command] = by_name["again"].commands
    assert "tests/a.py::test_b" in command and "tests/a.py::test_c" not in command and "256px" not in command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages.main(["--out", str(tmp_path / "evidence")]) != 0
    said = capsys.readouterr().err
    assert "torch sees no GPU here" in said and "--tiny" in said and not (tmp_path / "evidence").exists()
