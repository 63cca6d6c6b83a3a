"""Autotuning: the operators' implementations are timed on this machine when asked, and the times cached on disk.

    with fastt2i.ops.tuning():
        step()  # one of each kind that will run

Before a candidate is timed, its result and its gradients are compared with the reference in float64; one that is
wrong, or cannot run, is dropped with a warning that names it. Second derivatives are not compared: few calls are
differentiated twice, and all would pay for it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fastt2i.ops.dispatch.correctness import MANY_PERTURBATIONS, compare, reference_results, results
from fastt2i.ops.dispatch.timing_cache import store
from fastt2i.ops.transforms import under_transform

#: Untimed and timed rounds, each of which runs every candidate once.
WARM_UP, ROUNDS = 2, 9

_on = False


@contextmanager
def tuning() -> Iterator[None]:
    """Time the implementations of every operator called in this context whose times are not cached yet.

    A new call takes as long as some dozen calls of each candidate. Nothing is timed under `torch.compile`, which uses
    the times that are cached when it traces. While a CUDA graph is captured nothing can be timed, and inside this
    context a new call raises; outside it the heuristic decides, as it does for every call that was never timed. A
    call whose reference results are not finite is not timed: no candidate can be verified by them.
    """
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def is_tuning() -> bool:
    """Whether new calls are to be timed."""
    return _on and not torch.compiler.is_compiling() and not under_transform()


def measure(
    device: torch.device,
    key: str,
    training: bool,
    candidates: dict[str, Callable[..., Tensor]],
    reference: Callable[..., Tensor],
    arguments: tuple[Any, ...],
    per_sample: tuple[int, ...] = (0,),
) -> None:
    """Verify and time the candidates on a call's own arguments, and cache the times.

    per_sample: places of the arguments that have a row for each sample.

    Raises RuntimeError while a CUDA graph is being captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{key}: this call has no times and nothing can be timed while a CUDA graph is captured; "
            "run it once inside fastt2i.ops.tuning() before"
        )
    with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(training):
        expect = partial(reference_results, reference, arguments, training, per_sample=per_sample)
        exact = expect()
        if not all(tensor.isfinite().all() for tensor, _ in exact):
            return
        patient = cache(partial(expect, perturbations=MANY_PERTURBATIONS))
        verified = {
            name: run
            for name, run in candidates.items()
            if _verify(key, name, run, exact, patient, arguments, training)
        }
        milliseconds = _time(verified, arguments, training, device)
    store(device, key, {name: milliseconds.get(name) for name in candidates})


def _verify(
    key: str,
    name: str,
    run: Callable[..., Tensor],
    exact: list[tuple[Tensor, float]],
    patient: Callable[[], list[tuple[Tensor, float]]],
    arguments: tuple[Any, ...],
    training: bool,
) -> bool:
    """Whether a candidate may run; what `patient` gives, which takes longer, is asked for where `exact` speaks against
    it."""
    try:
        found = results(run, arguments, training)
        error = compare(found, exact) and compare(found, patient())
    except Exception as exception:  # whatever it is, it must not end a run that can go on without this candidate
        error = f"it fails: {exception}"
    if error is not None:
        warnings.warn(f"{key}: {name} is left out, for {error}", stacklevel=2)
    return error is None


def _time(
    candidates: dict[str, Callable[..., Tensor]], arguments: tuple[Any, ...], training: bool, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each candidate; rounds interleave them, so that drift meets all alike."""
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
