"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from fastt2i.devices.control_groups import smallest_limit


def usable_cores() -> int:
    """Cores that this process may run on, or that a container's quota of processor time amounts to, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """The cores' worth of time that the kernel lets this process have, as `docker --cpus` sets it; None for no limit.

    The smallest of its control group's and of those around it: `cpu.max` of version 2, `cpu.cfs_quota_us` of 1.
    """
    return smallest_limit("cpu", _cfs_quota_of, _max_of)


def _max_of(folder: Path) -> float | None:
    """What `cpu.max` says: microseconds in a period, or `max`, and the period."""
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _cfs_quota_of(folder: Path) -> float | None:
    """The same of version 1, where -1 is no limit."""
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return quota / period if quota > 0 else None
