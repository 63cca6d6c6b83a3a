"""Directories that one process at a time may write."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastt2i.files import lock
from fastt2i.files.lock import DirectoryInUse, claim_directory

HOLD = """
import sys, time
from pathlib import Path
from fastt2i.files.lock import claim_directory
with claim_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_directory_is_held_once_and_free_afterwards(tmp_path: Path) -> None:
    with claim_directory(tmp_path), pytest.raises(DirectoryInUse, match=rf"by process {os.getpid()} on \S+$"):
        claim_directory(tmp_path).__enter__()
    with claim_directory(tmp_path):
        pass


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUse, match=f"{tmp_path} is in use by process {process.pid} on"):
            claim_directory(tmp_path).__enter__()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with claim_directory(tmp_path):
        pass


def test_a_note_that_says_nothing_names_nobody(tmp_path: Path) -> None:
    with claim_directory(tmp_path):
        (tmp_path / lock.HOLDER).write_text("[]")
        with pytest.raises(DirectoryInUse, match="is in use by another process"):
            claim_directory(tmp_path).__enter__()


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLock:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(lock, "FileLock", NoLock)
    with pytest.warns(UserWarning, match="knows no locks: let no other process write there"), claim_directory(tmp_path):
        pass
