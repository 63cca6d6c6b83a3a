"""Where caches are kept, also for a user without a home."""

from __future__ import annotations

import pwd
import tempfile
from pathlib import Path

import pytest

from fastt2i.files.user_cache import user_cache


def no_such_user(number: int) -> None:
    raise KeyError(number)


def test_a_user_without_a_home_has_a_cache_of_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="there is no home directory: caches are kept in .*; set XDG_CACHE_HOME"):
        found = user_cache("text")
    assert found.is_relative_to(tmp_path) and found.parents[1].stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning):
        home = user_cache("text").parents[1]
    home.rmdir()
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="belongs to somebody else"):
        user_cache("text")
