"""How much memory is free, and what would not fit into it."""

from __future__ import annotations

import os
from pathlib import Path

from fastt2i.devices.control_groups import smallest_limit
from fastt2i.errors import UserError

_MEMORY = Path("/proc/meminfo")


def installed_memory() -> int | None:
    """Bytes of the machine; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory() -> int | None:
    """Bytes that programs can still take, of the machine and of what a container may have; where the system does not
    tell, those of the machine, or None."""
    limits = (_free_of_machine(), smallest_limit("memory", _free_of_version_1, _free_of_version_2))
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _free_of_machine() -> int | None:
    try:
        return _numbers(_MEMORY)["MemAvailable:"] * 1024
    except (OSError, ValueError, KeyError):
        return installed_memory()


# Of a control group; what it holds of files that are not in use is given back when it is needed.


def _free_of_version_2(folder: Path) -> int:
    limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
    return max(0, limit - used + _numbers(folder / "memory.stat")["inactive_file"])


def _free_of_version_1(folder: Path) -> int:
    limit, used = (int((folder / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage"))
    return max(0, limit - used + _numbers(folder / "memory.stat")["total_inactive_file"])


def _numbers(file: Path) -> dict[str, int]:
    """Of a file whose lines are a name and a number each, and perhaps more."""
    return {row[0]: int(row[1]) for row in map(str.split, file.read_text().splitlines()) if len(row) > 1}


def check_memory(num_bytes: int, what: str, instead: str) -> None:
    """Raise UserError where something needs more bytes than are free, before any of it is there.

    what: that needs them, as "100 images"; instead: what would be right, as "ask for fewer at once".
    """
    free = free_memory()
    if free is not None and num_bytes > free:
        raise UserError(f"{what} would take {_told(num_bytes)} of memory, and {_told(free)} are free; {instead}")


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
