"""What workers are told of the program that starts them, and where their sockets are."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import multiprocessing.spawn
import multiprocessing.util
import sys
import tempfile
from pathlib import Path

import pytest

from fastt2i.data.loaders.worker_start import starting_workers


def test_workers_do_not_run_the_script_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "script.py", raising=False)
    before = dict(vars(main))
    with starting_workers():
        told = multiprocessing.spawn.get_preparation_data("worker")
    assert not [name for name in told if name.startswith("init_main")]
    assert dict(vars(main)) == before


@pytest.mark.parametrize("length", [10, 90])
def test_sockets_have_short_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    folder = str(tmp_path / ("x" * length)) if length > 60 else "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", folder)
    process = multiprocessing.process.current_process()
    monkeypatch.setattr(process, "_config", {**process._config, "tempdir": None})  # type: ignore[attr-defined]
    with starting_workers():
        pass
    place = multiprocessing.util.get_temp_dir()
    assert Path(place).parent == Path("/tmp") and tempfile.tempdir == folder
