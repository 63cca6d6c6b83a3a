"""Compile the Triton kernels that the suite launches, before any is needed: some processes, a share of them each.

    python -m benchmarks.gpu.compile_ahead --share 0/10

Steps and operators are traced on fake tensors, so nothing has to be recorded that could go out of date, and the GPU is
left alone; programs go into Triton's cache, where other processes find them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from benchmarks.stand_in.device import ensure_device
from fastt2i.cli import run
from fastt2i.presets import PRESETS

if TYPE_CHECKING:
    from benchmarks.stand_in.launches import Launch

See = Callable[["Launch"], None]
#: Traces something, and takes what each launch goes to.
Job = Callable[[See], None]
#: What the GPU suite trains in.
PRECISION = "bf16"


def jobs(presets: Sequence[str]) -> dict[str, Job]:
    """What is worth most first: steps, then every form of each operator, which tuning tries."""
    return steps(presets) | operators()


def steps(presets: Sequence[str]) -> dict[str, Job]:
    """Those of each preset without the penalty and with it."""
    return {
        f"{preset}{', with penalty' if penalty else ''}": partial(_trace_step, preset, penalty)
        for preset in presets
        for penalty in (False, True)
    }


def operators() -> dict[str, Job]:
    """Each operator of the suite, in every form that can run."""
    import torch

    from benchmarks.gpu.operator_calls import operator_calls

    names = operator_calls(torch.device("cpu"), torch.float32, 1, tiny=True)
    return {name: partial(_trace_operator, name) for name in names}


def launches(job: Job) -> dict[Any, Launch]:
    """What a job launches, each specialisation once."""
    found: dict[Any, Launch] = {}
    job(lambda launch: found.setdefault(launch.key, launch))
    return found


def _trace_step(preset: str, penalty: bool, see: See) -> None:
    from benchmarks.cases.training_step import configured
    from benchmarks.stand_in.step_cost import cost_of_step

    cost_of_step(configured(preset, precision=PRECISION), penalty, see)


def _trace_operator(name: str, see: See) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from benchmarks.gpu.operator_calls import BATCH, operator_calls
    from benchmarks.stand_in.fake_step import CUDA
    from benchmarks.stand_in.launches import through_bodies, watched
    from fastt2i.engine.precision import Precision
    from fastt2i.ops.dispatch.correctness import results
    from fastt2i.ops.dispatch.registry import forced, forms, recorded

    with FakeTensorMode(), through_bodies(nullcontext), watched(see):
        op, arguments = operator_calls(CUDA, Precision(PRECISION, CUDA).dtype, BATCH, tiny=False)[name]
        with recorded() as choices:
            results(op, arguments, True)
        for call, _ in choices[:1]:
            for form in (f for f, reason in forms(call).items() if f.startswith("triton") and reason is None):
                with forced(form):
                    results(op, arguments, True)


def compile_share(share: Iterable[tuple[str, Job]]) -> Iterator[str]:
    """A line for each job; what does not compile is told, and the rest goes on."""
    done: set[Any] = set()
    for name, job in share:
        began, failed, new = time.monotonic(), 0, 0
        for key, launch in launches(job).items():
            if key in done:
                continue
            done.add(key)
            new += 1
            try:
                launch.compiled()
            except Exception as error:  # of the compiler, of which there are many kinds
                failed += 1
                yield f"{launch.name} does not compile: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield f"{name}: {new} programs, {failed} failed, {time.monotonic() - began:.1f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.compile_ahead", description=__doc__)
    parser.add_argument("--share", default="0/1", metavar="K/N", help="every Nth step, from the Kth on")
    first, number = map(int, parser.parse_args(argv).share.split("/"))
    return run(lambda: _main(first, number))


def _main(first: int, number: int) -> None:
    ensure_device()
    for told in compile_share(islice(jobs([*reversed(PRESETS)]).items(), first, None, number)):
        print(told, flush=True)


if __name__ == "__main__":
    sys.exit(main())
