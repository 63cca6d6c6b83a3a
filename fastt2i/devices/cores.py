"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on, or that a container's quota of processor time amounts to, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """The cores' worth of time that the kernel lets this process have, as `docker --cpus` sets it; None for no limit.

    The smallest of its control group's and of those around it: `cpu.max` of version 2, `cpu.cfs_quota_us` of 1.
    """
    quotas = []
    with suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                quotas += [_max_of(folder / "cpu.max") for folder in _upwards(_CGROUPS, path)]
            elif "cpu" in controllers.split(","):
                quotas += [_cfs_quota_of(folder) for folder in _upwards(_CGROUPS / "cpu", path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folders of a group and of all around it; in a container, whose root may be any group, the root at least."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _max_of(file: Path) -> float | None:
    """What `cpu.max` says: microseconds in a period, or `max`, and the period."""
    with suppress(OSError, ValueError):
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    return None


def _cfs_quota_of(folder: Path) -> float | None:
    """The same of version 1, where -1 is no limit."""
    with suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None
