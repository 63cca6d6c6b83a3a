"""Times of the operators' implementations on this machine: taken when asked, and kept in a table ever after.

    with fastt2i.ops.tuning():
        step()  # one of each kind that will run

Before a candidate is timed, its result and its gradients are compared with the definition in float64; one that is
wrong, or cannot run, is dropped with a warning that names it. Second derivatives are not compared: few calls are
differentiated twice, and all would pay for it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastt2i.ops.dispatch.timing_cache import keep
from fastt2i.ops.dispatch.verify import disagreement, expected, results

#: A candidate is run this often before it is timed, and in this many rounds that go through all candidates.
WARM_UP, ROUNDS = 2, 9

_on = False


@contextmanager
def tuning() -> Iterator[None]:
    """Time the implementations of every operator called in this block whose times are not known yet.

    Inside it a call that is new takes as long as some dozen calls of each candidate. Not under `torch.compile`, which
    uses the times that are known when it traces. While a CUDA graph is captured nothing can be timed, and inside this
    block a new call raises; outside it the rule of thumb decides, as it does for every call that was never timed. A
    call whose own results are not finite is not timed: nothing can be told right from wrong by them.
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


def measure(
    device: torch.device,
    key: str,
    training: bool,
    candidates: dict[str, Callable[..., Tensor]],
    truth: Callable[..., Tensor],
    arguments: tuple[Any, ...],
) -> None:
    """Check and time the candidates on a call's own arguments, and keep what is found, if anything can be.

    Raises RuntimeError while a CUDA graph is being captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{key}: nothing is known of this call and nothing can be timed while a CUDA graph is captured; "
            "run it once inside fastt2i.ops.tuning() before"
        )
    with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(training):
        right = expected(truth, arguments, training)
        if not all(exact.isfinite().all() for exact, _ in right):
            return
        good = {n: run for n, run in candidates.items() if _is_right(key, n, run, right, arguments, training)}
        milliseconds = _time(good, arguments, training, device)
    keep(device, key, {name: milliseconds.get(name) for name in candidates})


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
