"""Contests of an operator: its definition eager and compiled, ours, each of its implementations, and peers' forms.

Whatever is timed is first compared with the definition in float64, on the very inputs that it is timed with. Of ours,
what is wrong fails; an alternative that is wrong or does not run is listed as unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.comparison import Contender, Contest, hold
from benchmarks.harness.peak_memory import peak
from benchmarks.harness.result import OURS, Series
from benchmarks.harness.roofline import Limits, Work
from benchmarks.harness.timing import Candidate, Sample, Stopwatch
from fastt2i.ops import tuning
from fastt2i.ops.dispatch.registry import DTYPES, forced, forms, recorded
from fastt2i.ops.dispatch.verify import CHUNK, compare, reference_results, relative_error, results, upstream

Run = Callable[..., Tensor]
REFERENCE, COMPILED = "reference", "torch.compile"


class Wrong(AssertionError):
    """An implementation of ours disagrees with the definition."""


@dataclass(frozen=True)
class OperatorCase:
    """A call to be timed.

    Attributes:
        operator: by its public name.
        case: which call, in words.
        op: takes the arguments, and `impl`.
        arguments: tensors of one dtype first.
        training: whether a backward counts.
        work: the fewest bytes and operations.
        peers: what peers do instead, of the same arguments and with the same result.
        chunk: samples that float64 takes at once; None where they do not stand alone.
        kinks: whether rounding may choose the side of one, see `verify.reference_results`.
        images: that a call handles.
    """

    operator: str
    case: str
    op: Run
    arguments: tuple[Any, ...]
    training: bool
    work: Work
    peers: Mapping[str, Run] | None = None
    chunk: int | None = CHUNK
    kinks: bool = True
    images: int = 1
    headline: bool = False
    series: Series | None = None


def compete(
    benchmark: Any, case: OperatorCase, device: torch.device, limits: Limits, seconds: float, *, compiled: bool = True
) -> None:
    """Check and time all that there is for a case; `compiled`: torch.compile too, which takes a while."""
    dtype = case.arguments[0].dtype
    truth = partial(case.op, impl=REFERENCE)
    right = reference_results(truth, case.arguments, case.training, case.chunk, kinks=case.kinks)
    contest = Contest(
        case.operator,
        case.case,
        DTYPES[dtype],
        "training" if case.training else "inference",
        headline=case.headline,
        work={"images": case.images},
        floor=case.work.floor(limits, dtype),
        series=case.series,
    )
    watch, contenders = Stopwatch(device), {}
    errors: dict[str, list[float]] = {}
    unavailable: dict[str, str] = {}

    def enter(name: str, run: Run, role: str, form: str = "") -> None:
        # What each costs includes what it allocates, so all are measured alike.
        found = results(run, case.arguments, case.training)
        wrong = compare(found, right)
        if wrong and role != "alternative":
            raise Wrong(f"{case.operator}, {case.case}, {contest.dtype}: {form or name} is wrong: {wrong}")
        if wrong:
            unavailable[name] = wrong
            return
        errors[name] = [relative_error(mine, exact) for mine, (exact, _) in zip(found, right, strict=True)]
        del found
        held = peak(lambda: results(run, case.arguments, case.training), device)
        contenders[name] = Contender(_timed(run, case, watch), role, form, held)

    ours, there = _ours(case, device)
    enter(OURS, case.op, "ours", ours)
    enter(REFERENCE, truth, "alternative")
    for name, mode in (_compilers(device) if compiled else {}).items():
        torch._dynamo.reset()  # compiled code of other cases is not asked whether it fits
        try:
            enter(name, _unrestricted(torch.compile(truth, dynamic=False, fullgraph=True, mode=mode)), "alternative")
        except Exception as error:  # of the compiler, of which there are many kinds
            unavailable[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for name, run in (case.peers or {}).items():
        enter(name, run, "alternative")
    for form, reason in there.items():
        if reason is not None:
            unavailable[form] = reason
        elif form not in (ours, REFERENCE):
            enter(form, _forced(case.op, form), "implementation", form)
    hold(benchmark, replace(contest, errors=errors, unavailable=unavailable), contenders, seconds)


def _ours(case: OperatorCase, device: torch.device) -> tuple[str, dict[str, str | None]]:
    """What the dispatcher chooses, and all forms that there are. On a GPU it times them first, as the engine does."""
    with recorded() as choices, tuning() if device.type == "cuda" else nullcontext():
        results(case.op, case.arguments, case.training)
    call, name = choices[0]
    return name, forms(call)


def _forced(op: Run, form: str) -> Run:
    def run(*arguments: Any) -> Tensor:
        with forced(form):
            return op(*arguments)

    return run


def _compilers(device: torch.device) -> dict[str, str | None]:
    """Modes of torch.compile by name. On a GPU, its own graphs copy inputs, so both with and without compete."""
    if device.type == "cuda":
        return {COMPILED: "max-autotune", f"{COMPILED}, no graphs": "max-autotune-no-cudagraphs"}
    return {COMPILED: None}


def _unrestricted(compiled: Run) -> Run:
    """Results of one run may be overwritten by the next."""

    def run(*arguments: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments)

    return run


def _timed(run: Run, case: OperatorCase, watch: Stopwatch) -> Candidate:
    """Samples of the forward and, in training, of the backward."""
    if not case.training:

        def infer() -> None:
            with torch.no_grad():
                run(*case.arguments)

        return watch.timed(infer, "forward")
    own = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in case.arguments]
    wanted = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
    gradient = upstream(run(*own))

    def sample(repeats: int) -> Sample:
        parts = {"forward": 0.0, "backward": 0.0}
        for _ in range(repeats):
            watch.clear()
            marks = [watch.mark()]
            y = run(*own)
            marks.append(watch.mark())
            torch.autograd.grad(y, wanted, gradient)
            marks.append(watch.mark())
            for part, seconds in zip(parts, watch.seconds(marks), strict=True):
                parts[part] += seconds / repeats
        return {**parts, "both": sum(parts.values())}

    return sample
