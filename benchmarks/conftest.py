"""What every benchmark has: the device in each row."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from fastt2i.machine import processor


@pytest.fixture
def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def name_the_device(benchmark: Any, device: torch.device) -> None:
    """A figure without its machine says nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    benchmark.extra_info["processor"] = f"{processor()}, {cores} cores"
    benchmark.extra_info["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
