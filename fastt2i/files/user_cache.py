"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """`fastt2i/<name>` in the user's cache directory; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastt2i" / name
