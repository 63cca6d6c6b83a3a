"""What the control groups of this process allow it, a container's among them, by either version of the kernel's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")

#: Takes a group's folder; None where it sets no limit.
Read = Callable[[Path], float | None]


def smallest_limit(controller: str, version_1: Read, version_2: Read) -> float | None:
    """The smallest limit of the process's group and of those around it, None where none sets one.

    controller: `cpu`, `memory`; version_1, version_2: read the limit of a group, whose files' absence or content they
    may raise OSError or ValueError for.
    """
    limits = []
    with suppress(OSError):
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                limits += [_read(version_2, folder) for folder in _upwards(_ROOT, path)]
            elif controller in controllers.split(","):
                limits += [_read(version_1, folder) for folder in _upwards(_ROOT / controller, path)]
    return min((limit for limit in limits if limit is not None), default=None)


def _read(limit_of: Read, folder: Path) -> float | None:
    with suppress(OSError, ValueError, KeyError):
        return limit_of(folder)
    return None


def _upwards(root: Path, path: str) -> list[Path]:
    """The folders of a group and of all around it; in a container, whose root may be any group, the root at least."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
