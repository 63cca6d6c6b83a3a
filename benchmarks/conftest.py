"""The perf suite: one row for each case, with all contenders of it, the device and its limits.

python -m pytest benchmarks --benchmark-only [--benchmark-json=FILE] [--device cpu|cuda] [--quick] [--minutes N]
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import isolation
from benchmarks.harness.comparison import Contender, Contest, hold, line
from benchmarks.harness.operator_case import OperatorCase, compete
from benchmarks.harness.roofline import Limits, measure_limits
from fastt2i import __version__
from fastt2i.devices.capabilities import processor
from fastt2i.engine.execution.allocator import keep_freed_memory

#: Seconds of the rounds of a case, by device; with --quick two thirds of it.
SECONDS = {"cpu": 1.5, "cuda": 1.5}
#: Cases that take turns where each has a process of its own: so many have their tensors in memory at once.
TOGETHER = 4

_LIMITS = pytest.StashKey[Limits | None]()
_LINES = pytest.StashKey[list[str]]()
_BEGAN = time.monotonic()


@dataclass(frozen=True)
class Suite:
    """What a case is run with.

    Attributes:
        seconds: that its rounds take, about.
        quick: without torch.compile.
        fresh_memory: the C library gives memory back, which its cases say.
        traces: where traces go, if anywhere.
    """

    benchmark: Any
    device: torch.device
    limits: Limits
    seconds: float
    quick: bool = False
    fresh_memory: bool = False
    traces: Path | None = None

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def compete(self, case: OperatorCase) -> None:
        """Check and time an operator."""
        if self.fresh_memory:
            case = replace(case, case=f"{case.case}, fresh memory")
        compete(self.benchmark, case, self.device, self.limits, self.seconds, compiled=not self.quick)

    def hold(self, contest: Contest, contenders: Mapping[str, Contender]) -> None:
        """Time what is no operator."""
        hold(self.benchmark, contest, contenders, self.seconds)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("perf suite")
    group.addoption("--device", choices=("cpu", "cuda"), help="what is measured; the GPU where there is one")
    group.addoption("--traces", type=Path, metavar="DIR", help="write traces of training steps there")
    group.addoption("--quick", action="store_true", help="only some cases, fewer rounds, no torch.compile")
    group.addoption(
        "--minutes", type=float, metavar="N", help="begin no case after N minutes; the most important first"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "importance(n): cases of a larger n are run first")
    config.addinivalue_line("markers", "on(device): only on this one")
    config.addinivalue_line("markers", "quick: one of those that --quick runs")
    config.addinivalue_line("markers", "gives_memory_back: large tensors are in fresh memory, as by default")
    config.stash[_LIMITS], config.stash[_LINES] = None, []
    # What its table would say of a case, ours says of all contenders.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = _device(config).type
    left = [item for item in items if _is_wanted(item, device, config.getoption("quick"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = sorted(left, key=lambda item: -_importance(item))


def _is_wanted(item: pytest.Item, device: str, quick: bool) -> bool:
    devices = {mark.args[0] for mark in item.iter_markers("on")}
    return device in (devices or {device}) and (not quick or item.get_closest_marker("quick") is not None)


def _importance(item: pytest.Item) -> int:
    mark = item.get_closest_marker("importance")
    return mark.args[0] if mark else 0


def pytest_runtestloop(session: pytest.Session) -> None:
    config = session.config
    # A first compilation takes two seconds of imports: here once, and not in each process.
    if _isolated(config) and session.items and not (config.option.collectonly or config.getoption("quick")):
        x = torch.ones(1, requires_grad=True)
        # Without threads of its own, which a fork leaves behind, and waits for. Where nothing can be compiled, each
        # case says so.
        with torch._inductor.config.patch(compile_threads=1), suppress(Exception):
            torch.compile(lambda x: x.sigmoid(), dynamic=False)(x).sum().backward()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not _isolated(item.config):
        return None
    stash, items = item.config.stash, item.session.items
    if stash[_LIMITS] is None:
        stash[_LIMITS] = isolation.apart(lambda: measure_limits(_device(item.config)))
    place = items.index(item)
    if place % TOGETHER == 0:
        known = len(stash[_LINES])  # which every process has when it begins
        for told in isolation.run_apart(items[place : place + TOGETHER], lambda: stash[_LINES][known:]):
            stash[_LINES].extend(told)
    return True


def _isolated(config: pytest.Config) -> bool:
    return _device(config).type == "cpu" and isolation.AVAILABLE


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    if minutes is not None and time.monotonic() - _BEGAN > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of --minutes are over")
    if _isolated(item.config) and not _gives_memory_back(item):
        keep_freed_memory()  # as in training; otherwise how long pages take decides, and not what is computed


def _gives_memory_back(item: pytest.Item) -> bool:
    return item.get_closest_marker("gives_memory_back") is not None


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """What is measured."""
    return _device(request.config)


@pytest.fixture(scope="session")
def limits(device: torch.device, pytestconfig: pytest.Config) -> Limits:
    """Measured once."""
    found = pytestconfig.stash[_LIMITS] or measure_limits(device)
    pytestconfig.stash[_LIMITS] = found
    return found


@pytest.fixture
def suite(
    benchmark: Any,
    device: torch.device,
    limits: Limits,
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
) -> Iterator[Suite]:
    """What a case is run with."""
    quick, fresh_memory = pytestconfig.getoption("quick"), _gives_memory_back(request.node)
    seconds = SECONDS[device.type] / (1.5 if quick else 1)
    yield Suite(benchmark, device, limits, seconds, quick, fresh_memory, pytestconfig.getoption("traces"))
    if "candidates" in benchmark.extra_info:
        told = line(benchmark.extra_info)
        pytestconfig.stash[_LINES].append(told)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_LINES]:
        terminalreporter.section("medians of ours, and the times of others over them")
        for told in config.stash[_LINES]:
            terminalreporter.write_line(told)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastt2i"] = _machine(_device(config), config.stash[_LIMITS])


def _machine(device: torch.device, limits: Limits | None) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {cores} cores"
    return {
        "device": name,
        "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "device_type": device.type,
        "processor": processor(),
        "cores": cores,
        "versions": {
            "fastt2i": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
        },
        **({"limits": asdict(limits)} if limits else {}),
    }


def _device(config: pytest.Config) -> torch.device:
    asked = config.getoption("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU here; leave the option out, or say cpu")
    return torch.device(asked)
