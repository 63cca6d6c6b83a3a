"""The campaign finds what it looks for: each of its ways to look is shown a planted fault."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastt2i.devices.allocator import keep_freed_memory
from fastt2i.errors import UserError
from tests.campaign import fuzzed_files, report
from tests.campaign.bit_flips import damage
from tests.campaign.full_disks import FullDisks
from tests.campaign.fuzzed_files import FuzzedFiles, Target
from tests.campaign.parts import Outcome, Part, run_part
from tests.campaign.processes import Fault, Process, run
from tests.campaign.works import Inputs, Work, assert_finite, files_below

pytestmark = pytest.mark.quick


class Third(Part):
    """Fails in its third trial."""

    name, unit, planned, share = "third", "trial", 5, 1.0

    def prepare(self, folder: Path) -> None:
        self.drawn: list[float] = []

    def trial(self, number: int, moments: random.Random) -> Outcome:
        self.drawn.append(moments.random())
        if number == 2:
            raise Fault("it broke")
        return Outcome(1)


def test_a_failure_is_reported_with_what_makes_it_again(tmp_path: Path) -> None:
    first, again = Third(), Third()
    result = run_part(first, tmp_path, tmp_path / "failures", seed=7, seconds=60)
    assert (result.trials, result.tried) == (5, 5) and [(f.trial, f.what) for f in result.failures] == [(2, "it broke")]
    text = report.write(tmp_path, [result], seed=7, minutes=1)
    command = "python -m tests.campaign --only third --seed 7 --trial 2 --out FOLDER"
    assert command in text and text == (tmp_path / "report.md").read_text()
    (part,) = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert part["survived"] == 4 and part["failures"][0]["again"] == command
    run_part(again, tmp_path, tmp_path / "failures", seed=7, seconds=60, only_trial=2)
    assert again.drawn == [first.drawn[2]]


def test_a_part_that_cannot_be_tried_here_is_skipped_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mount").write_text("#!/bin/sh\necho 'mount: only root\n  may do that' >&2; exit 1\n")
    (tmp_path / "bin" / "mount").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    monkeypatch.setattr(Inputs, "make", lambda folder: None)  # they are not needed
    (tmp_path / "disks").mkdir()
    result = run_part(FullDisks(), tmp_path / "disks", tmp_path / "failures", seed=7, seconds=60)
    why = "no file system can be mounted, which needs root (mount: only root may do that)"
    assert (result.tried, result.trials, result.failures, result.skipped) == (0, 0, [], why)
    assert f"disks is skipped: {why}\n" in capsys.readouterr().out
    assert f"| disks (full disks) | 0 | 150 | 0 | 0 | skipped: {why} |" in report.write(tmp_path, [result], 7, 1)


def test_how_a_job_ends(tmp_path: Path) -> None:
    def fail() -> int:
        raise ValueError("ours")

    def mistake() -> int:
        print("fastt2i: error: yours")
        return 2

    with pytest.raises(Fault, match="and not with one sentence"):
        run(fail, tmp_path / "log").told()
    with pytest.raises(Fault, match="it ended with status 2: fastt2i: error: yours"):
        run(mistake, tmp_path / "log").succeeded()
    assert run(mistake, tmp_path / "log").told() == "fastt2i: error: yours"
    sleeping: Callable[[], int] = lambda: time.sleep(60) or 0  # noqa: E731
    with pytest.raises(Fault, match="it had not ended after 0 s"):
        Process(sleeping, tmp_path / "log").wait(0.2)
    process = Process(sleeping, tmp_path / "log")
    process.kill()
    assert process.ended().status == -9


def test_other_bytes_leftovers_and_what_is_not_finite(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    work = Work("writing", tmp_path, lambda: 0, lambda: 0, lambda: files_below(tmp_path))
    work.assert_result({"a": b"one"})
    for wanted in ({"a": b"two"}, {}, {"a": b"one", "b": b""}):
        with pytest.raises(Fault, match="writing has left other bytes in [ab]"):
            work.assert_result(wanted)
    (tmp_path / ".a.tmp").touch()
    with pytest.raises(Fault, match=r"/\.a\.tmp is left over"):
        work.assert_result({"a": b"one"})
    save_file({"w": torch.tensor([1.0, float("inf")])}, tmp_path / "w.safetensors")
    with pytest.raises(Fault, match="not finite in w"):
        assert_finite(tmp_path)


def test_damage_changes_a_file_and_keeps_its_time(tmp_path: Path) -> None:
    content, changed = bytes(range(256)) * 8, 0
    for seed in range(30):
        (tmp_path / "a").write_bytes(content)
        before = (tmp_path / "a").stat().st_mtime_ns
        damage(tmp_path / "a", random.Random(seed))
        assert (tmp_path / "a").stat().st_mtime_ns == before
        changed += (tmp_path / "a").read_bytes() != content
    assert changed == 30


def _traceback(folder: Path, value: int) -> None:
    raise ValueError("a defect")


def _outside(folder: Path, value: int) -> None:
    (folder / ".." / "secret.png").read_bytes()


def _long(folder: Path, value: int) -> None:
    while True:
        pass


def _large(folder: Path, value: int) -> None:
    torch.ones(2**26)


def _lines(folder: Path, value: int) -> None:
    raise UserError("one\ntwo")


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (_traceback, "ValueError: a defect"),
        (_outside, "it looked at open .*secret.png"),
        (_long, "it ended by signal 27"),
        (_large, "it has taken [0-9]+ MiB"),
        (_lines, "the refusal has several lines"),
    ],
)
def test_readers_that_break_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path, int], None], sentence: str
) -> None:
    if read is _long:  # the others have the time that a busy machine takes
        monkeypatch.setattr(fuzzed_files, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(fuzzed_files, "MEMORY", 2**27)
    part = FuzzedFiles([Target("planted", 10, st.integers(), read)])
    part.failures = tmp_path / "failures"
    part.prepare(tmp_path)
    with pytest.raises(Fault, match=rf"(?s)planted, input \d+, kept in .*{sentence}"):
        part.trial(0, random.Random(0))
    assert (tmp_path / "failures" / "0-planted" / "secret.png").is_file()


def test_memory_that_an_input_takes_is_seen_beside_memory_that_was_freed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzed_files, "MEMORY", 2**27)
    keep_freed_memory()  # as a training in this process does
    garbage: list[object] = [torch.ones(2**27)]
    garbage.append(garbage)  # a circle, which lives until the next collection
    part = FuzzedFiles([Target("planted", 10, st.integers(), _large)])
    part.failures = tmp_path / "failures"
    part.prepare(tmp_path)
    del garbage
    with pytest.raises(Fault, match="it has taken [0-9]+ MiB"):
        part.trial(0, random.Random(0))


def test_readers_that_refuse_and_read_are_counted(tmp_path: Path) -> None:
    def read(folder: Path, value: int) -> None:
        if value % 2:
            raise UserError("it is odd")

    part = FuzzedFiles([Target("numbers", 500, st.integers(), read)])
    part.prepare(tmp_path)
    outcome = part.trial(0, random.Random(0))
    assert outcome.tried == sum(outcome.kinds.values()) == 50
    assert set(outcome.kinds) == {"numbers, refused", "numbers, read"}
