"""Run directories: names for new runs, the run to resume, and what is logged twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastt2i.config import Config
from fastt2i.data.dataset import Problem
from fastt2i.engine.logging.run_directory import (
    RunDirectory,
    choose_directory,
    claimed_directory,
    refuse_folder_of_images,
)
from fastt2i.errors import UserError
from fastt2i.presets import preset


def start(name: str, age: int) -> None:
    run = RunDirectory(Path("runs", name))
    run.prepare()
    run.note(Config())
    os.utime(run.config, (1e9 - age, 1e9 - age))


def test_new_runs_get_free_names_and_the_newest_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_directory(None, "demo", resume=False).path == Path("runs/demo")
    with pytest.raises(UserError, match="there is no run to resume at runs/demo"):
        choose_directory(None, "demo", resume=True)
    start("demo", age=5)
    start("demo-64px", age=1)
    assert choose_directory(None, "demo", resume=False).path == Path("runs/demo-2")
    start("demo-2", age=9)
    assert choose_directory(None, "demo", resume=True).path == Path("runs/demo")
    assert choose_directory(None, "demo-64px", resume=True).path == Path("runs/demo-64px")
    # A folder in which no run was ever started is free.
    RunDirectory(Path("runs/demo-3")).prepare()
    assert choose_directory(None, "demo", resume=False).path == Path("runs/demo-3")


def test_a_new_run_is_not_put_among_images(tmp_path: Path) -> None:
    data, images = tmp_path / "data", tmp_path / "data" / "images"
    images.mkdir(parents=True)
    (images / "a.JPG").touch()
    for out in (images, data, tmp_path / "data" / ".." / "data"):
        with pytest.raises(UserError, match=f"^the output folder {out} holds images that are not a run's"):
            refuse_folder_of_images(out, str(data))
    for free in (None, data / "run", tmp_path):
        refuse_folder_of_images(free, str(data))
    run = RunDirectory(data)  # as of a version that did so
    run.prepare()
    run.note(Config())
    refuse_folder_of_images(data, str(data))


def test_an_old_run_is_never_written_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not choose_directory(run.path, "demo", resume=True).exists()  # resuming from nothing is starting
    run.prepare()
    run.note(preset("64px"))
    with pytest.raises(UserError, match="already holds a run"):
        choose_directory(run.path, "demo", resume=False)
    assert choose_directory(run.path, "demo", resume=True).saved_config(Config()) == preset("64px")
    (run.checkpoints / "step-00000002").mkdir()
    run.config.unlink()  # checkpoints alone, as somebody may have copied them
    with pytest.raises(UserError, match="already holds a run"):
        choose_directory(run.path, "demo", resume=False)
    refuse_folder_of_images(run.path, str(tmp_path))
    assert choose_directory(run.path, "demo", resume=True).saved_config(Config()) == Config()


def test_of_runs_that_start_at_once_each_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        claimed_directory(None, "demo", resume=False) as first,
        claimed_directory(None, "demo", resume=False) as second,
    ):
        assert (first.path, second.path) == (Path("runs/demo"), Path("runs/demo-2"))
        first.note(Config())
        for out, resume in ((None, True), (first.path, True), (second.path, False)):
            with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
                claimed_directory(out, "demo", resume).__enter__()
    with claimed_directory(first.path, "demo", resume=True) as again:
        assert again.path == first.path


def test_what_will_be_logged_again_is_dropped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3, 4)) + '{"step": 5, "d_')
    assert [r["step"] for r in run.records()] == [1, 2, 3, 4]
    run.rewind(2)
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_quarantine_holds_any_name(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_quarantine([Problem("bäd\udcff.png", 'it says "no"')])
    (line,) = run.quarantine.read_text("utf-8").splitlines()
    assert "bäd" in line and 'it says \\"no\\"' in line
