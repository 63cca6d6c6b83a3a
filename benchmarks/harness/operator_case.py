"""Cases of an operator: its definition, eager and compiled, beside ours, each of its implementations and peers' forms.

What is timed is first compared with the definition in float64 on the same inputs. One of ours that is wrong fails the
case; an alternative that is wrong or does not run is listed as unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.peak_memory import peak
from benchmarks.harness.result import OURS, Series
from benchmarks.harness.roofline import Work
from benchmarks.harness.suite import Suite, Timed
from benchmarks.harness.timing import Sample, Sampler, Stopwatch, rounded
from fastt2i.ops import tuning
from fastt2i.ops.dispatch.correctness import CHUNK, compare, reference_results, relative_error, results, upstream
from fastt2i.ops.dispatch.registry import DTYPES, forced, forms, recorded

Operator = Callable[..., Tensor]
REFERENCE, COMPILED = "reference", "torch.compile"
#: Modes of torch.compile by name. Its own graphs copy inputs, so on a GPU both with and without are candidates.
MODES: dict[str, dict[str, str | None]] = {
    "cpu": {COMPILED: None},
    "cuda": {COMPILED: "max-autotune", f"{COMPILED}, no graphs": "max-autotune-no-cudagraphs"},
}


class WrongResult(AssertionError):
    """An implementation of ours disagrees with the definition."""


@dataclass(frozen=True)
class OperatorCase:
    """A call to be timed.

    Attributes:
        operator: its public name.
        case: which call, for people.
        op: takes the arguments, and `impl`.
        arguments: tensors of one dtype first.
        training: whether the backward counts.
        work: the fewest bytes and operations.
        peers: what peers run instead, of the same arguments and with the same result.
        chunk: samples that float64 takes at once; None where a sample's result depends on the others.
        kinks: whether rounding may choose the side of one, see `verify.reference_results`.
        images: that a call handles.
    """

    operator: str
    case: str
    op: Operator
    arguments: tuple[Any, ...]
    training: bool
    work: Work
    peers: Mapping[str, Operator] = field(default_factory=dict)
    chunk: int | None = CHUNK
    kinks: bool = True
    images: int = 1
    headline: bool = False
    series: Series | None = None

    @property
    def definition(self) -> Operator:
        return partial(self.op, impl=REFERENCE)

    @property
    def dtype(self) -> str:
        return DTYPES[self.arguments[0].dtype]


def compare_operator(suite: Suite, case: OperatorCase) -> None:
    """Check and time all candidates of a case.

    Raises:
        WrongResult: of ours.
    """
    check = _Check(case, suite)
    ours, there = _dispatched(case, suite)
    check.add(OURS, case.op, "ours", ours)
    check.add(REFERENCE, case.definition)
    for name, mode in ({} if suite.quick else MODES[suite.device.type]).items():
        torch._dynamo.reset()  # compiled code of other cases is not asked whether it fits
        try:
            check.add(name, _without_reuse(torch.compile(case.definition, dynamic=False, fullgraph=True, mode=mode)))
        except Exception as error:  # of the compiler, of which there are many kinds
            check.unavailable[name] = reason(error)
    for name, run in case.peers.items():
        check.add(name, run)
    check.unavailable |= {form: why for form, why in there.items() if why is not None}
    for form in [form for form, why in there.items() if why is None and form not in (ours, REFERENCE)]:
        check.add(form, in_form(case.op, form), "implementation", form)
    suite.compare(
        check.candidates,
        case.case,
        operator=case.operator,
        dtype=case.dtype,
        direction="training" if case.training else "inference",
        headline=case.headline,
        work={"images": case.images},
        roofline=case.work.roofline(suite.limits, case.arguments[0].dtype),
        series=case.series,
        errors=check.errors,
        unavailable=check.unavailable,
    )


class _Check:
    """The candidates of a case that are right, their errors, and why others are not there."""

    def __init__(self, case: OperatorCase, suite: Suite) -> None:
        self._case, self._suite = case, suite
        self._right = reference_results(case.definition, case.arguments, case.training, case.chunk, kinks=case.kinks)
        self.candidates: dict[str, Timed] = {}
        self.errors: dict[str, tuple[float, ...]] = {}
        self.unavailable: dict[str, str] = {}

    def add(self, name: str, run: Operator, role: str = "alternative", form: str = "") -> None:
        """Check a candidate, and measure the memory that it takes."""
        case = self._case
        found = results(run, case.arguments, case.training)
        wrong = compare(found, self._right)
        if wrong and role != "alternative":
            raise WrongResult(f"{case.operator}, {case.case}, {case.dtype}: {form or name} is wrong: {wrong}")
        if wrong:
            self.unavailable[name] = wrong
            return
        pairs = zip(found, self._right, strict=True)
        self.errors[name] = tuple(rounded(relative_error(mine, exact)) for mine, (exact, _) in pairs)
        del found, pairs  # memory that this one would be charged with
        memory = peak(lambda: results(run, case.arguments, case.training), self._suite.device)
        self.candidates[name] = Timed(_sampler(run, case, self._suite.watch), role, form, memory)


def reason(error: Exception) -> str:
    """Why something could not run: the kind of its error, and the first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _dispatched(case: OperatorCase, suite: Suite) -> tuple[str, dict[str, str | None]]:
    """What the dispatcher chooses, on a GPU by timing as in training, and all forms with why they cannot run."""
    with recorded() as choices, tuning() if suite.on_cuda else nullcontext():
        results(case.op, case.arguments, case.training)
    call, name = choices[0]
    return name, forms(call)


def in_form(op: Operator, form: str) -> Operator:
    """The operator with an implementation that is forced."""

    def run(*arguments: Any) -> Tensor:
        with forced(form):
            return op(*arguments)

    return run


def _without_reuse(compiled: Operator) -> Operator:
    """Results of one run may be overwritten by the next."""

    def run(*arguments: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments)

    return run


def _sampler(run: Operator, case: OperatorCase, watch: Stopwatch) -> Sampler:
    """Times the forward and, in training, the backward."""
    if not case.training:
        return watch.sampler(torch.no_grad()(partial(run, *case.arguments)), "forward")
    own = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in case.arguments]
    wanted = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
    gradient = upstream(run(*own))

    def both(lap: Callable[[], None]) -> None:
        y = run(*own)
        lap()
        torch.autograd.grad(y, wanted, gradient)
        lap()

    def sample(repeats: int) -> Sample:
        forward, backward = watch.laps(both, repeats)
        return {"forward": forward, "backward": backward, "both": forward + backward}

    return sample
