"""Files and directories are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastt2i.files.atomic import move_directory, new_directory, replace_file, write_file, write_output

STOP_IN_THE_MIDDLE = """
import sys, time
from pathlib import Path
from fastt2i.files import atomic

def fsync(descriptor):
    print("in the middle", flush=True)
    time.sleep(600)

atomic.os.fsync = fsync
atomic.replace_file(Path(sys.argv[1]), b"theirs")
"""


def test_a_directory_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with new_directory(target) as temporary:
        write_file(temporary / "a", b"1")
        assert not target.exists()
    assert (target / "a").read_bytes() == b"1"
    with pytest.raises(RuntimeError), new_directory(target) as temporary:
        write_file(temporary / "a", b"2")
        raise RuntimeError
    assert (target / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "half").write_bytes(b"x")
    with new_directory(tmp_path / "model") as temporary:
        write_file(temporary / "a", b"1")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "model"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        write_output(pipe, b"scores")
        assert read.result(timeout=60) == b"scores"
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_output(tmp_path, b"scores")
    assert tmp_path.is_dir()


def test_a_replaced_file_is_the_old_one_until_it_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fastt2i.files.atomic.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_that_has_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    (tmp_path / ".file.tmp").symlink_to(victim)
    replace_file(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"new" and not path.is_symlink()


def test_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    """Whoever reads meanwhile finds what one of them wrote, as a whole."""
    path, contents = tmp_path / "file", [bytes([number]) * 5000 for number in range(8)]
    replace_file(path, contents[0])

    def write(content: bytes) -> bool:
        found = []
        for _ in range(25):
            replace_file(path, content)
            found.append(path.read_bytes())
        return all(each in contents for each in found)

    with ThreadPoolExecutor(len(contents)) as pool:
        assert all(pool.map(write, contents))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_is_at_it_is_left_alone_and_one_that_was_killed_is_cleaned_up(tmp_path: Path) -> None:
    path, temporary = tmp_path / "file", tmp_path / ".file.tmp"
    (tmp_path / ".file.2.tmp").write_bytes(b"of a killed second one")
    process = subprocess.Popen([sys.executable, "-c", STOP_IN_THE_MIDDLE, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"in the middle\n"
        replace_file(path, b"ours")
        assert path.read_bytes() == b"ours" and temporary.read_bytes() == b"theirs"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".file.tmp", "file"]
    finally:
        process.kill()
        process.communicate()
    replace_file(path, b"ours again")
    assert path.read_bytes() == b"ours again" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_has_files_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fastt2i.files.atomic.fcntl.flock", refuse)
    (tmp_path / ".file.tmp").write_bytes(b"of a killed one")
    replace_file(tmp_path / "file", b"content")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_has_the_temporary_name_stays(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").mkdir()
    replace_file(tmp_path / "file", b"content")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".file.tmp", "file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOTSUP])
def test_a_file_system_that_does_not_sync_directories_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "file", b"content")
    with new_directory(tmp_path / "directory") as folder:
        write_file(folder / "file", b"content")
    assert (tmp_path / "file").read_bytes() == (tmp_path / "directory" / "file").read_bytes() == b"content"


def test_a_file_that_is_not_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        replace_file(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_a_lower_layer_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay file system does not rename directories that came with a container's image."""
    place, rename = tmp_path / "directory", Path.rename
    place.mkdir()
    (place / "file").write_bytes(b"old")

    def refuse(path: Path, target: Path) -> Path:
        if path == place:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with new_directory(place) as folder:
        write_file(folder / "file", b"new")
    assert (place / "file").read_bytes() == b"new" and list(tmp_path.iterdir()) == [place]


def test_a_directory_that_is_moved_by_copying_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, rename = tmp_path / "source", tmp_path / "target", Path.rename
    source.mkdir()
    (source / "file").write_bytes(b"content")

    def refuse(path: Path, other: Path) -> Path:
        if path == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, other)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        move_directory(source, target)
    assert not target.exists() and (source / "file").read_bytes() == b"content"
    move_directory(source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["target"] and (target / "file").read_bytes() == b"content"
