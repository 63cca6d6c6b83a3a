"""Files and directories are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastt2i.files.atomic import new_directory, replace_file, write_file


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
