"""What a case of the benchmark suite is run with: the device, its limits, and the comparison that is recorded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.result import OURS, Candidate, Case, Device, Result
from benchmarks.harness.roofline import Limits
from benchmarks.harness.timing import Sampler, Stopwatch, milliseconds, ratios, take_turns
from fastt2i import __version__
from fastt2i.devices.capabilities import processor

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Timed:
    """A candidate to be timed; the other fields are those of `result.Candidate`.

    role: by default the name tells, `ours` or an alternative.
    """

    sample: Sampler
    role: Any = ""
    form: str = ""
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Suite:
    """Handed to every case.

    Attributes:
        seconds: for the rounds of a case, about.
        quick: without torch.compile.
        fresh_memory: the C library returns freed memory to the system, which the names of the cases say.
        cases: that have been recorded.
    """

    device: torch.device
    limits: Limits
    seconds: float
    quick: bool = False
    fresh_memory: bool = False
    cases: list[Case] = field(default_factory=list)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def watch(self) -> Stopwatch:
        """Of the device."""
        return Stopwatch(self.device)

    def compare(self, candidates: Mapping[str, Timed], case: str, **described: Any) -> None:
        """Time the candidates in turns and record the case; `described`: its other fields, as of `result.Case`."""
        taken = take_turns({name: timed.sample for name, timed in candidates.items()}, self.seconds)
        described = {"direction": "step", "case": f"{case}, fresh memory" if self.fresh_memory else case, **described}
        told = {}
        for name, timed in candidates.items():
            role = timed.role or (OURS if name == OURS else "alternative")
            told[name] = Candidate(role, milliseconds(taken[name]), timed.form, timed.peak_bytes, len(taken[name]))
        against_ours = {name: ratios(taken[name], taken[OURS]) for name in candidates if name != OURS}
        self.cases.append(Case(candidates=told, ratios=against_ours, **described))


def result(device: torch.device, limits: Limits, cases: Sequence[Case]) -> Result:
    """The record of a run on this machine, of this commit and moment."""
    commit = _git("rev-parse", "HEAD")
    return Result(
        device=_device(device, limits),
        cases=tuple(cases),
        measured=datetime.now(timezone.utc).isoformat(),
        commit=commit or "unknown",
        dirty=bool(commit and _git("status", "--porcelain", "--untracked-files=no")),
    )


def _device(device: torch.device, limits: Limits) -> Device:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {cores} cores"
    return Device(
        name=name,
        slug=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        type="cuda" if device.type == "cuda" else "cpu",
        versions={
            "fastt2i": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
        },
        **limits._asdict(),
    )


def _git(*arguments: str) -> str:
    """Output of git in the repository; empty where there is neither."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
