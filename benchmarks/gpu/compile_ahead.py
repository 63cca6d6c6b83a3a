"""Compile the Triton kernels that training steps launch, before any is needed: some processes, a share of them each.

    python -m benchmarks.gpu.compile_ahead --share 0/10

Steps are traced on fake tensors, so nothing has to be recorded that could go out of date, and the GPU is left alone;
programs go into Triton's cache, where other processes find them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.stand_in.device import ensure_device
from fastt2i.cli import run
from fastt2i.kernels.tiles import CONFIGS
from fastt2i.presets import PRESETS

if TYPE_CHECKING:
    from benchmarks.stand_in.launches import Launch


class Job(NamedTuple):
    """A step to be traced; form: of the one-kernel convolution, where it is forced."""

    preset: str
    penalty: bool
    form: str = ""


def jobs(presets: Sequence[str]) -> list[Job]:
    """What is worth most first: steps as they are, then every tile that tuning tries."""
    plain = [Job(preset, penalty) for preset in presets for penalty in (False, True)]
    return plain + [Job(preset, False, f"triton/{config.name}") for preset in presets for config in CONFIGS]


def launches(job: Job, precision: str) -> dict[Any, Launch]:
    """What a job's step launches, each specialisation once."""
    from benchmarks.stand_in.fake_step import configured
    from benchmarks.stand_in.step_cost import cost_of_step
    from fastt2i.ops.dispatch.registry import forced

    found: dict[Any, Launch] = {}
    with forced(job.form) if job.form else nullcontext():
        config = configured(job.preset, precision=precision)
        cost_of_step(config, job.penalty, lambda launch: found.setdefault(launch.key, launch))
    return found


def compile_share(share: Sequence[Job], precision: str) -> Iterator[str]:
    """A line for each job; what does not compile is told, and the rest goes on."""
    done: set[Any] = set()
    for job in share:
        began, failed, new = time.monotonic(), 0, 0
        for key, launch in launches(job, precision).items():
            if key in done:
                continue
            done.add(key)
            new += 1
            try:
                launch.compiled()
            except Exception as error:  # of the compiler, of which there are many kinds
                failed += 1
                yield f"{launch.name} does not compile: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield f"{' '.join(map(str, job))}: {new} programs, {failed} failed, {time.monotonic() - began:.1f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.compile_ahead", description=__doc__)
    parser.add_argument("--share", default="0/1", metavar="K/N", help="every Nth step, from the Kth on")
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=[*reversed(PRESETS)])
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="bf16")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    ensure_device()
    first, number = map(int, arguments.share.split("/"))
    for told in compile_share(jobs(arguments.preset)[first::number], arguments.precision):
        print(told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
