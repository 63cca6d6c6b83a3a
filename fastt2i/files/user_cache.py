"""The folder of caches: the one place that decides where they are."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path


def user_cache(name: str) -> Path:
    """`fastt2i/<name>` in the user's cache directory; it may not be there yet.

    A user without a home directory, as in a container that runs under a bare number, has one below the temporary
    directory instead, named after that number, and is warned.
    """
    return _cache_home() / "fastt2i" / name


def _cache_home() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        home = Path(tempfile.gettempdir(), f"fastt2i-cache-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            raise OSError(f"{home} belongs to somebody else; set XDG_CACHE_HOME") from None
        warnings.warn(f"there is no home directory: caches are kept in {home}; set XDG_CACHE_HOME", stacklevel=3)
        return home
