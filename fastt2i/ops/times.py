"""Times of the operators' implementations on this machine: taken when asked, kept on disk, looked up ever after.

    with fastt2i.ops.tuning():
        step()  # one of each kind that will run

Before a candidate is timed, its result and its gradients are compared with the definition in float64; one that is
wrong, or cannot run, is dropped with a warning that names it. The table is a JSON file for each device and set of
versions, in `fastt2i/dispatch` in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastt2i import __version__
from fastt2i.durable import replace_file
from fastt2i.machine import processor
from fastt2i.ops.agreement import disagreement, expected, results
from fastt2i.user_cache import user_cache

#: Milliseconds of each implementation by name; None where it was dropped.
Times = dict[str, float | None]

#: A candidate is run this often before it is timed, and in this many rounds that go through all candidates.
WARM_UP, ROUNDS = 2, 9

_on = False
_tables: dict[str, dict[str, Times]] = {}


@contextmanager
def tuning() -> Iterator[None]:
    """Time the implementations of every operator called in this block whose times are not known yet.

    Inside it a call that is new takes as long as some dozen calls of each candidate. Not under `torch.compile`, which
    uses the times that this process knows when it traces. While a CUDA graph is captured nothing can be timed, and a
    new call raises.
    """
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def is_on() -> bool:
    """Whether new calls are to be timed."""
    return _on and not torch.compiler.is_compiling()


def known(device: torch.device, key: str) -> Times:
    """What was timed for a call; empty where nothing was."""
    # torch.compile traces no reading of files: it gets what this process knows by then.
    table = _tables.get(_name(device), {}) if torch.compiler.is_compiling() else table_of(device)
    return table.get(key, {})


def table_of(device: torch.device) -> dict[str, Times]:
    """All times known of a device, by call."""
    name = _name(device)
    if name not in _tables:
        _tables[name] = _read(path_of(device))
    return _tables[name]


def path_of(device: torch.device) -> Path:
    """The file of a device's table; another version of anything that matters has another one."""
    digest = hashlib.sha256(json.dumps(versions(device)).encode()).hexdigest()
    return user_cache("dispatch") / f"{digest[:16]}.json"


def versions(device: torch.device) -> dict[str, str]:
    """Everything that a time depends on besides the call."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        hardware = f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"
        tf32 = torch.backends.cudnn.allow_tf32
        arithmetic = f"cuDNN {torch.backends.cudnn.version()}, {'tf32' if tf32 else 'ieee'}"
    else:
        hardware = f"{processor()}, {torch.get_num_threads()} threads"
        arithmetic = torch.backends.cpu.get_cpu_capability()
    return {
        "fastt2i": __version__,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "device": f"{device.type}: {hardware}",
        "arithmetic": arithmetic,
    }


def measure(
    device: torch.device,
    key: str,
    training: bool,
    candidates: dict[str, Callable[..., Tensor]],
    truth: Callable[..., Tensor],
    arguments: tuple[Any, ...],
) -> Times:
    """Check and time the candidates on a call's own arguments, and keep the result.

    Raises RuntimeError while a CUDA graph is being captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{key}: nothing is known of this call and nothing can be timed while a CUDA graph is captured; "
            "run it once inside fastt2i.ops.tuning() before"
        )
    with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(training):
        right = expected(truth, arguments, training)
        good = {n: run for n, run in candidates.items() if _is_right(key, n, run, right, arguments, training)}
        milliseconds = _time(good, arguments, training, device)
    times: Times = {name: milliseconds.get(name) for name in candidates}
    _keep(device, key, times)
    return times


def _is_right(
    key: str,
    name: str,
    run: Callable[..., Tensor],
    right: list[tuple[Tensor, float]],
    arguments: tuple[Any, ...],
    training: bool,
) -> bool:
    try:
        wrong = disagreement(results(run, arguments, training), right)
    except Exception as error:  # whatever it is, it must not end a run that can go on without this candidate
        wrong = f"it fails: {error}"
    if wrong is not None:
        warnings.warn(f"{key}: {name} is left out, for {wrong}", stacklevel=2)
    return wrong is None


def _time(
    candidates: dict[str, Callable[..., Tensor]], arguments: tuple[Any, ...], training: bool, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each candidate, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(WARM_UP + ROUNDS):
        for name, run in candidates.items():
            elapsed = _elapsed(partial(results, run, arguments, training), device)
            if number >= WARM_UP:
                taken[name].append(elapsed)
    return {name: statistics.median(milliseconds) for name, milliseconds in taken.items()}


def _elapsed(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _keep(device: torch.device, key: str, times: Times) -> None:
    """Add to the table, on disk too where that can be written; what others wrote meanwhile stays."""
    table, path = table_of(device), path_of(device)
    table[key] = times
    table |= {k: v for k, v in _read(path).items() if k not in table}
    content = {"versions": versions(device), "milliseconds": dict(sorted(table.items()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        warnings.warn(f"times of operators cannot be kept in {path}: {error.strerror}", stacklevel=2)


def _read(path: Path) -> dict[str, Times]:
    try:
        return json.loads(path.read_bytes())["milliseconds"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the times of operators in {path} cannot be read ({error}) and are taken anew", stacklevel=2)
        return {}


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _name(device: torch.device) -> str:
    return f"{device.type}:{device.index or 0}"
