"""A training step without a GPU: launches, bytes and operations of each part, on fake tensors that take a GPU's path.

    python -m benchmarks.gpu.dry_step --preset 256px --batch 32 [--penalty] [--precision bf16] [--json FILE]

Nothing is computed, so nothing is timed: the milliseconds that it prints are a prediction from the rates of memory and
matrix units, and every kernel is taken to reach them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.stand_in.device import ensure_device
from fastt2i.cli import run
from fastt2i.files.atomic import replace_file
from fastt2i.presets import PRESETS

if TYPE_CHECKING:
    from benchmarks.stand_in.step_cost import StepCost

#: Of a GPU: bytes a second read and written by a copy, and operations a second of a bf16 product, both measured.
MEASURED = {"H100": (3.0e12, 798e12), "H200": (4.3e12, 790e12)}
#: Operations a second of both in float32 without tensor cores, by the maker; and TF32's share of the rate of bf16.
FLOAT32, TF32_SHARE = 67e12, 0.5
#: Seconds that a launch takes at least when a graph is replayed: an assumption.
LAUNCH = 2e-6


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.dry_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=list(PRESETS), default="256px")
    parser.add_argument("--batch", type=int, metavar="B", help="images of a step; the preset's by default")
    parser.add_argument("--penalty", action="store_true", help="a step that has the gradient penalty")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    ensure_device()
    # Before this torch must not be there.
    from benchmarks.cases.training_step import configured
    from benchmarks.stand_in.step_cost import cost_of_step

    config = configured(arguments.preset, arguments.batch, precision=arguments.precision)
    cost = cost_of_step(config, arguments.penalty)
    what = f"{arguments.preset}, batch {config.train.batch_size}, {arguments.precision}"
    print(
        f"{what}, {'with' if arguments.penalty else 'without'} penalty\n" + "\n".join(table(cost, arguments.precision))
    )
    if arguments.json:
        replace_file(arguments.json, json.dumps(record(cost), indent=1).encode() + b"\n")
    return 1 if cost.forbidden else 0


def record(cost: StepCost) -> dict[str, Any]:
    """The figures as they go into a file."""
    total = cost.total
    return {
        "launches": total.launches,
        "bytes": total.bytes,
        "flops": total.flops,
        "forbidden": dict(cost.forbidden),
        "parts": {
            name: {
                **asdict(part.total),
                "bytes": part.total.bytes,
                "operators": {name: asdict(c) for name, c in _by_bytes(part.operators)},
                "dtypes": {name: dict(found) for name, found in part.dtypes.items()},
            }
            for name, part in cost.parts.items()
        },
        "region_loss_dtype": ", ".join(sorted(cost.region_dtypes)),
    }


def predicted_seconds(cost: StepCost, gpu: str, precision: str) -> float:
    """The roofline: each launch takes the longer time of its bytes and of its products, and `LAUNCH` at least."""
    bandwidth, products = MEASURED[gpu]
    single = FLOAT32 if precision == "fp32" else TF32_SHARE * products
    seconds = 0.0
    for launch, dtype in cost.launches:
        rate = products if dtype.itemsize == 2 else single
        seconds += max(LAUNCH * launch.launches, launch.bytes / bandwidth, launch.flops / rate)
    return seconds


def table(cost: StepCost, precision: str) -> Iterator[str]:
    """What is printed."""
    yield f"{'part':24} {'launches':>8} {'GB read':>8} {'written':>8} {'GFLOP':>8}"
    for name, part in (*cost.parts.items(), ("in all", None)):
        total = part.total if part else cost.total
        numbers = f"{total.bytes_read / 1e9:8.2f} {total.bytes_written / 1e9:8.2f} {total.flops / 1e9:8.1f}"
        yield f"{name:24} {total.launches:8} {numbers}"
    yield "\ndtypes at our operators, what goes in -> what comes out"
    for name, part in cost.parts.items():
        for op, dtypes in part.dtypes.items():
            if op.startswith("fastt2i."):
                yield from (
                    f"  {name}: {op.partition('.')[2]}: {told} ({count} times)" for told, count in dtypes.items()
                )
    told = ", ".join(f"{what} ({count} times)" for what, count in cost.forbidden.items())
    yield f"\nforbidden in a captured step: {told or 'nothing'}"
    for gpu, (bandwidth, products) in MEASURED.items():
        yield (
            f"prediction, not a measurement: {1e3 * predicted_seconds(cost, gpu, precision):.1f} ms on an {gpu}, were "
            f"every launch to reach {bandwidth / 1e12:.1f} TB/s or {products / 1e12:.0f} TFLOP/s"
        )


def _by_bytes(operators: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(operators.items(), key=lambda item: -item[1].bytes)


if __name__ == "__main__":
    sys.exit(main())
