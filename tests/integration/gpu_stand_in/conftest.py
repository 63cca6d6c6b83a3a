"""Tests in a process that has the stand-in for a GPU; `test_gpu_stand_in.py` runs them there."""

from __future__ import annotations

import os

from benchmarks.stand_in.device import PRELOADED, ensure_device

if PRELOADED in os.environ:
    ensure_device()
else:
    collect_ignore_glob = ["test_*.py"]
