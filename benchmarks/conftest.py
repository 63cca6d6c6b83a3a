"""The benchmark suite as a plugin of pytest: which cases run, in which processes, and the record that is written.

    python -m pytest benchmarks --benchmark-only [--benchmark-json=FILE] [--device cpu|cuda] [--quick] [--minutes N]

The first two options are pytest-benchmark's, whose place this plugin takes: cases compare alternatives in turns, each
in a process of its own, which its fixture cannot. Without pytest-benchmark the options are here all the same.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import isolation
from benchmarks.harness.result import Case
from benchmarks.harness.roofline import Limits, measure_limits
from benchmarks.harness.suite import Suite, result
from fastt2i.devices.allocator import keep_freed_memory
from fastt2i.files.atomic import replace_file

#: For the rounds of a case; with --quick two thirds of it.
SECONDS = 1.5
#: Cases that take turns where each has a process of its own: so many have their tensors in memory at once.
CONCURRENT_CASES = 4

_LIMITS = pytest.StashKey[Limits | None]()
_CASES = pytest.StashKey[dict[str, list[Case]]]()  # by the name of the test
_BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    group = parser.getgroup("benchmark suite")
    if pluginmanager.hasplugin("benchmark"):  # pytest-benchmark: its options of these names stay
        pluginmanager.unregister(name="benchmark")
    else:
        group.addoption("--benchmark-only", action="store_true", help="has no effect: all cases are benchmarks")
        group.addoption("--benchmark-json", type=Path, metavar="FILE", help="write the result there, after every case")
    group.addoption("--device", choices=("cpu", "cuda"), help="what is measured; the GPU where there is one")
    group.addoption("--learning", type=float, default=5.0, metavar="N", help="minutes of training of each learner")
    group.addoption("--learning-data", default="", metavar="PATH", help="captioned images to learn at 64 px")
    group.addoption("--quick", action="store_true", help="only some cases, fewer rounds, no torch.compile")
    group.addoption(
        "--minutes", type=float, metavar="N", help="begin no case after N minutes; the most important first"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "importance(n): cases of a larger n are run first")
    config.addinivalue_line("markers", "on(device): only on this one")
    config.addinivalue_line("markers", "quick: one of those that --quick runs")
    config.addinivalue_line("markers", "gives_memory_back: freed memory is returned to the system, as by default")
    config.stash[_LIMITS], config.stash[_CASES] = None, {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = _device(config).type
    left = [item for item in items if _argument(item, "on", device) == device]
    if config.getoption("quick"):
        left = [item for item in left if item.get_closest_marker("quick")]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = sorted(left, key=lambda item: -_argument(item, "importance", 0))


def _argument(item: pytest.Item, marker: str, default: Any) -> Any:
    """Of its marker; the default where it has none."""
    mark = item.get_closest_marker(marker)
    return mark.args[0] if mark else default


def pytest_runtestloop(session: pytest.Session) -> None:
    config = session.config
    # A first compilation takes two seconds of imports: here once, and not in each process.
    if _isolated(config) and session.items and not (config.option.collectonly or config.getoption("quick")):
        x = torch.ones(1, requires_grad=True)
        # With one thread: others would not survive a fork, and be waited for. Where nothing can be compiled, each case
        # says so.
        with torch._inductor.config.patch(compile_threads=1), suppress(Exception):
            torch.compile(lambda x: x.sigmoid(), dynamic=False)(x).sum().backward()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    config, items = item.config, item.session.items
    if not _isolated(config):
        return None
    if config.stash[_LIMITS] is None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            config.stash[_LIMITS] = pool.submit(measure_limits, _device(config)).result()
    place = items.index(item)
    if place % CONCURRENT_CASES == 0:
        group = items[place : place + CONCURRENT_CASES]
        isolation.run_tests_isolated(
            group, lambda: config.stash[_CASES], lambda item, found: _record(item, found.get(item.nodeid, []))
        )
    return True


def _isolated(config: pytest.Config) -> bool:
    return _device(config).type == "cpu" and isolation.AVAILABLE


def _record(item: pytest.Item, cases: list[Case]) -> None:
    """Keep cases of a test and write all that are known, so that what is finished survives whatever comes."""
    config, found = item.config, item.config.stash[_CASES]
    found |= {item.nodeid: cases} if cases else {}
    path, limits = config.getoption("benchmark_json"), config.stash[_LIMITS]
    if path and cases and limits:
        in_order = [case for other in item.session.items for case in found.get(other.nodeid, [])]
        replace_file(path, result(_device(config), limits, in_order).to_json().encode())


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    if minutes is not None and time.monotonic() - _BEGAN > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of --minutes are over")
    if _isolated(item.config) and not item.get_closest_marker("gives_memory_back"):
        keep_freed_memory()  # as in training; otherwise page faults decide, and not what is computed


@pytest.fixture
def benchmark(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[Suite]:
    """What a case is run with."""
    quick, device = pytestconfig.getoption("quick"), _device(pytestconfig)
    limits = pytestconfig.stash[_LIMITS] = pytestconfig.stash[_LIMITS] or measure_limits(device)
    suite = Suite(
        device,
        limits,
        seconds=SECONDS / (1.5 if quick else 1),
        quick=quick,
        fresh_memory=request.node.get_closest_marker("gives_memory_back") is not None,
    )
    yield suite
    if _isolated(pytestconfig):  # in the case's own process, which is asked for them
        pytestconfig.stash[_CASES][request.node.nodeid] = suite.cases
    else:
        _record(request.node, suite.cases)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_CASES]:
        terminalreporter.section("medians of ours, and the times of others over them")
        for case in chain.from_iterable(config.stash[_CASES].values()):
            terminalreporter.write_line(str(case))


def _device(config: pytest.Config) -> torch.device:
    asked = config.getoption("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU here; leave the option out, or say cpu")
    return torch.device(asked)
