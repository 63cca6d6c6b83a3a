"""The cases that the suite measures, by stage, most important first.

python -m benchmarks.gpu.cases STAGE --log FILE [--out DIR] [--device cpu] [--tiny]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.bench_step import ALTERNATIVES, AMP, PEERS, Variant, launches, peers
from benchmarks.cases.training_step import configured, make_inputs
from benchmarks.gpu.case_log import Case, CaseLog, run_cases
from benchmarks.gpu.operator_calls import BATCH, OperatorCall, operator_calls
from benchmarks.harness.operator_case import in_form
from benchmarks.harness.roofline import measure_limits
from benchmarks.harness.timing import Stopwatch, quartiles
from fastt2i.ops.dispatch.correctness import compare, reference_results, results
from fastt2i.ops.dispatch.registry import forms, recorded

OURS, EAGER = "ours", "ours without graphs"
COMPILED_PEERS = "eager + AMP, compiled"
WAYS = {
    OURS: Variant("bf16", graphed=True),
    EAGER: Variant("bf16"),
    **{name: ALTERNATIVES[name] for name in (AMP, PEERS)},
    COMPILED_PEERS: peers("bf16", compiled=True),
    "ours, compiled": Variant("bf16", compiled=True, graphed=True),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where cases run, whether only to show that they do, and the folder of the training."""

    device: torch.device
    tiny: bool
    out: Path

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def smoke(setting: Setting) -> list[Case]:
    """Each operator against float64, forward and backward, and a step that is captured and replayed."""
    checks = [Case(name, partial(_check, call), 20) for name, call in _calls(setting, batch=2).items()]
    step = WAYS[OURS if setting.device.type == "cuda" else EAGER]  # only a GPU replays graphs
    return [*checks, Case("capture and replay", partial(_time_step, setting, "demo", 8, step, tuned=False), 40)]


def limits(setting: Setting) -> list[Case]:
    """The device's own: rates of copies and products."""
    return [Case("copy bandwidth and matrix rates", lambda: measure_limits(setting.device)._asdict(), 30)]


def steps(setting: Setting) -> list[Case]:
    """The training step in ways that need no compiler: first ours and the peers at 256 px."""
    if setting.tiny:
        return [_step_case(setting, "demo", 2, EAGER), _step_case(setting, "demo", 2, PEERS)]
    order = [("256px", 32, way) for way in (OURS, EAGER, AMP, PEERS)]
    order += [(name, 64, way) for name in ("256px", "64px", "demo") for way in (OURS, AMP)]
    tuned = [_step_case(setting, "256px", 32, OURS, tuned=True)]
    return [_step_case(setting, *case) for case in order] + tuned


def operators(setting: Setting) -> list[Case]:
    """Every form of each operator in training's own shapes."""
    return [Case(name, partial(_time_forms, setting, call), 40) for name, call in _calls(setting, BATCH).items()]


def compiled(setting: Setting) -> list[Case]:
    """The step compiled: the strongest peer, and ours."""
    order = [] if setting.tiny else [("256px", 32, COMPILED_PEERS), ("256px", 32, "ours, compiled")]
    return [_step_case(setting, *case, limit=120) for case in order]


def autotune(setting: Setting) -> list[Case]:
    """torch.compile's max-autotune of the definitions, which takes longest."""
    chosen = {} if setting.tiny else _calls(setting, BATCH)
    names = [name for name in chosen if name.startswith(("upsample", "region"))]
    return [Case(name, partial(_time_autotuned, setting, chosen[name]), 60) for name in names]


def training(setting: Setting) -> list[Case]:
    """The demo, as anybody trains it."""

    def train() -> dict[str, Any]:
        from benchmarks.gpu.train_demo import train_demo  # with the whole engine, which no other stage needs

        return train_demo(setting.out, steps=4 if setting.tiny else None)

    return [Case("demo", train, 90)]


STAGES: dict[str, Callable[[Setting], list[Case]]] = {
    stage.__name__: stage for stage in (smoke, limits, steps, operators, compiled, training, autotune)
}


def _calls(setting: Setting, batch: int) -> dict[str, OperatorCall]:
    return operator_calls(setting.device, setting.dtype, batch, setting.tiny)


def _check(call: OperatorCall) -> dict[str, Any]:
    op, arguments = call
    with recorded() as choices:
        found = results(op, arguments, True)
    exact = reference_results(partial(op, impl="reference"), arguments, True, chunk=None)
    wrong = compare(found, exact)
    assert wrong is None, wrong
    return {"implementation": choices[0][1] if choices else None}


def _step_case(setting: Setting, name: str, batch: int, way: str, tuned: bool = False, limit: float = 40) -> Case:
    label = f"{name}, batch {batch}, {way}{', tuned' if tuned else ''}"
    return Case(label, partial(_time_step, setting, name, batch, WAYS[way], tuned), limit)


def _time_step(setting: Setting, name: str, batch: int, way: Variant, tuned: bool) -> dict[str, Any]:
    """Milliseconds of steps without and with the penalty, and the most memory, capture included."""
    device, config = setting.device, configured(name, batch)
    if device.type == "cpu":
        way = dataclasses.replace(way, precision="fp32")
    inputs = make_inputs(config, device)
    losses = {k: float(v) for k, v in way.losses(config, inputs).items()} if not (way.graphed or way.compiled) else {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    take = way.prepare(config, device)
    way.warm_up(take, inputs, tuned)
    # A replay allocates nothing: what a graph holds was taken at its capture.
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    without, with_penalty = (_milliseconds(partial(take, inputs, penalty), setting) for penalty in (False, True))
    kept = {"losses": losses, "peak_bytes": memory, "ms": without, "ms_with_penalty": with_penalty}
    try:
        counted = launches(take, inputs)
    except Exception as error:  # the times are in hand already
        counted = f"not counted: {type(error).__name__}: {error}"
    return {**kept, "images_per_second": 1e3 * batch / without[1], "launches": counted}


def _time_forms(setting: Setting, operator_call: OperatorCall) -> dict[str, Any]:
    """Quartiles of milliseconds, forward and backward, of each form that can run; one that fails says so."""
    op, arguments = operator_call
    with recorded() as choices:
        results(op, arguments, True)
    if choices:
        call, ours = choices[0]
        runs = {form: in_form(op, form) for form, reason in forms(call).items() if reason is None}
    else:  # no dispatcher chooses its form
        ours, runs = "ours", {"ours": op, "reference": partial(op, impl="reference")}
    return {"ours": ours, "ms": {form: _attempt(run, arguments, setting) for form, run in runs.items()}}


def _time_autotuned(setting: Setting, call: OperatorCall) -> dict[str, Any]:
    op, arguments = call
    reference = torch.compile(partial(op, impl="reference"), mode="max-autotune-no-cudagraphs", dynamic=False)
    return {"ms": _attempt(reference, arguments, setting)}


def _attempt(op: Callable[..., Any], arguments: tuple[Any, ...], setting: Setting) -> Any:
    try:
        return _milliseconds(partial(results, op, arguments, True), setting)
    except Exception as error:  # of one form; the others are measured
        return f"{type(error).__name__}: {error}"[:300]


def _milliseconds(run: Callable[[], object], setting: Setting) -> list[float]:
    """Lower quartile, median and upper quartile, after two runs that do not count."""
    sample, rounds = Stopwatch(setting.device).sampler(run), 2 if setting.tiny else 15
    return list(quartiles([1e3 * sample(1)["step"] for _ in range(2 + rounds)][2:]))


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cases", description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="a line for each case goes there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few and small cases")
    parser.add_argument("--out", type=Path, default="runs/training", metavar="DIR", help="where the training goes")
    arguments = parser.parse_args(argv)
    setting = Setting(torch.device(arguments.device), arguments.tiny, arguments.out)
    cases = STAGES[arguments.stage](setting)
    if setting.tiny:  # on a CPU, perhaps a busy one
        cases = [dataclasses.replace(case, limit=10 * case.limit) for case in cases]
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "cpu"
    return run_cases(arguments.stage, cases, CaseLog(arguments.log), device=name)


if __name__ == "__main__":
    sys.exit(main())
