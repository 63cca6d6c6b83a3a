"""The whole training step: the engine's, peers' ways, and measure by measure what lies between.

Alternatives, on the same networks and inputs: (a) `peers' form, fp32`, eager with separate passes, (b) `eager + AMP`,
the same in bfloat16, and (c) `torch.compile` alone, the same with its parts compiled. The rows that begin with a plus
are measures: each has what the one above has and one more. A step is weighed as in training: one in
`loss.penalty_every` has the gradient penalty.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases.baselines import dfgan
from benchmarks.cases.training_step import SeparatePasses, make_inputs, make_step
from benchmarks.conftest import Suite
from benchmarks.harness.comparison import Contender, Contest
from benchmarks.harness.peak_memory import peak
from benchmarks.harness.result import OURS
from benchmarks.harness.roofline import Work
from benchmarks.harness.timing import Candidate, Sample, Stopwatch
from fastt2i.config import Config, preset
from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.engine.execution.compile_trial import compile_step
from fastt2i.engine.execution.cuda_graphs import WARM_UP, GraphedStep
from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.ops import tuning
from fastt2i.ops.dispatch.registry import forced

PEERS, AMP, COMPILED = "peers' form, fp32", "eager + AMP", "torch.compile"
#: By which the host asks for kernels.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
NO_BF16 = "this processor has no instructions for bfloat16, and products take a hundred times as long without"
LONG = "compiling a step takes minutes on a CPU; -m slow does it"
#: Relative difference of the first step's losses from those of peers' form, for the roundings of many layers.
BOUNDS = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Way:
    """How a step is taken.

    Attributes:
        precision: `auto` for the engine's own choice.
        kind: the engine's step or peers'.
        draws_once: one generator pass for both turns.
        operators: the implementation that is forced.
        compiled: its parts by torch.compile.
        graphed: as CUDA graphs.
    """

    precision: str
    kind: type[TrainStep] = TrainStep
    draws_once: bool = True
    operators: str | None = None
    compiled: bool = False
    graphed: bool = False

    def losses(self, config: Config, inputs: StepInputs) -> dict[str, Tensor]:
        """Of a first step, in the precision that this way computes in."""
        step = self._step(config, inputs.images.device)
        with self._operators():
            return step(inputs, torch.tensor(0.01, device=inputs.images.device), True)

    def prepare(self, config: Config, device: torch.device) -> Callable[[StepInputs, bool], None]:
        """What takes a step, on networks of its own."""
        step, weight = self._step(config, device), torch.tensor(0.01, device=device)

        def take(inputs: StepInputs, with_penalty: bool) -> None:
            with self._operators():
                step(inputs, weight, with_penalty)

        return GraphedStep(take, device, print) if self.graphed else take

    def _step(self, config: Config, device: torch.device) -> TrainStep:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=self.precision))
        step = make_step(config, device, self.kind)
        if isinstance(step, SeparatePasses):
            step.draws_once = self.draws_once
        return compile_step(step) if self.compiled else step

    def _operators(self) -> AbstractContextManager[None]:
        return forced(self.operators) if self.operators else nullcontext()


peers = partial(Way, kind=SeparatePasses, draws_once=False, operators="reference")
ALTERNATIVES = {PEERS: peers("fp32"), AMP: peers("bf16"), COMPILED: peers("fp32", compiled=True)}
MEASURES = {
    "+ one generator pass": peers("fp32", draws_once=True),
    "+ one trunk pass, text in the head": Way("fp32", operators="reference"),
    "+ fused operators": Way("fp32"),
    "+ bf16": Way("bf16"),
    "+ torch.compile": Way("auto", compiled=True),
}


def timed(take: Callable[[StepInputs, bool], None], inputs: StepInputs, every: int, watch: Stopwatch) -> Candidate:
    """A step on average, where one in `every` has the penalty: one with it and one without are timed."""

    def sample(repeats: int) -> Sample:
        total = 0.0
        for _ in range(repeats):
            marks = [watch.mark()]
            for with_penalty in (True, False):
                take(inputs, with_penalty)
                marks.append(watch.mark())
            penalised, plain = watch.seconds(marks)
            total += plain + (penalised - plain) / every
        return {"step": total / repeats}

    return sample


def launches(take: Callable[[StepInputs, bool], None], inputs: StepInputs, trace: Path | None) -> str:
    """What a step asks of a GPU: launches by the host, kernels, and the share of the step that the GPU is busy."""
    if not inputs.images.is_cuda:
        return ""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as found:
        torch.cuda.synchronize()
        for _ in range(3):
            take(inputs, False)
        torch.cuda.synchronize()
    if trace:
        found.export_chrome_trace(str(trace))
    events = found.profiler.kineto_results.events()
    asked = [event for event in events if event.name() in LAUNCHES]
    on_gpu = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in on_gpu)
    if not spans:
        return f", {len(asked) // 3} launches, no kernels seen"
    busy, end = 0, spans[0][0]
    for start, stop in spans:
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    share = busy / (end - spans[0][0])
    return f", {len(asked) // 3} launches, {len(on_gpu) // 3} kernels, busy {share:.1%}"


def work_of(step: TrainStep, inputs: StepInputs, weight: Tensor) -> Work:
    """Matrix products and convolutions of a step without penalty, and the bytes of parameters, moments and averages.

    Each parameter is read by the forward, its gradient is written and read, both moments are read and written, and it
    is written itself. What the penalty adds is left out (torch's counter cannot follow its derivatives), so that the
    floor is a little too low.
    """
    with FlopCounterMode(display=False) as counter:
        step(inputs, weight, False)
    players = (step.generator.module, step.discriminator.module)
    numbers = sum(p.numel() for module in players for p in module.parameters())
    return Work(4 * 8 * numbers, counter.get_total_flops())


def check(config: Config, inputs: StepInputs, ways: dict[str, Way]) -> dict[str, list[float]]:
    """Relative differences of each way's losses from those of peers' form; a way that is off fails."""
    right = ALTERNATIVES[PEERS].losses(config, inputs)
    found = {}
    for name, way in ways.items():
        losses = way.losses(config, inputs)
        off = [float((losses[k] - right[k]).abs() / right[k].abs().clamp(min=1e-2)) for k in right]
        precision = Precision(way.precision, inputs.images.device).name
        assert max(off) <= BOUNDS[precision], f"{name}: losses are off by {off}"
        found[name] = off
    return found


def compete(
    suite: Suite,
    name: str,
    *,
    batch: int | None = None,
    measures: bool = False,
    compiled: bool = True,
    note: str = "",
    headline: bool = True,
) -> None:
    """All ways of a preset's step."""
    config = preset(name)
    config.train = dataclasses.replace(config.train, batch_size=batch or config.train.batch_size)
    batch, every = config.train.batch_size, config.loss.penalty_every
    inputs, watch = make_inputs(config, suite.device), Stopwatch(suite.device)
    ways = {OURS: Way("auto", graphed=suite.on_cuda), **ALTERNATIVES}
    if suite.on_cuda:
        ways["without graphs"] = Way("auto")
    if measures:
        ways |= MEASURES
    unavailable = {}
    if not multiplies_bf16(suite.device):
        unavailable |= {name: NO_BF16 for name, way in ways.items() if way.precision == "bf16"}
    if not compiled:
        unavailable |= {name: LONG for name, way in ways.items() if way.compiled}
    ways = {name: way for name, way in ways.items() if name not in unavailable}
    contenders: dict[str, Contender] = {}
    errors = check(config, inputs, {name: way for name, way in ways.items() if not way.compiled})
    for name_of_way, way in ways.items():
        role = "ours" if name_of_way == OURS else "alternative" if name_of_way in ALTERNATIVES else "implementation"
        take = way.prepare(config, suite.device)
        try:
            with tuning() if suite.on_cuda else nullcontext():
                for with_penalty in (False, True):
                    for _ in range(1 + WARM_UP * way.graphed):
                        take(inputs, with_penalty)
        except Exception as error:
            if not way.compiled:
                raise
            unavailable[name_of_way] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        contenders[name_of_way] = Contender(
            timed(take, inputs, every, watch),
            role,
            Precision(way.precision, suite.device).name
            + launches(take, inputs, _trace(suite, f"{name} {batch} {name_of_way}")),
            peak(partial(take, inputs, True), suite.device),
        )
    plain = make_step(config, suite.device)
    work = work_of(plain, inputs, torch.tensor(0.01, device=suite.device))
    dtype = Precision("auto", suite.device).dtype
    suite.hold(
        Contest(
            "training step",
            f"{name}, batch {batch}{note}",
            "auto",
            "step",
            headline=headline,
            work={"images": batch},
            floor=work.floor(suite.limits, dtype),
            errors=errors,
            unavailable=unavailable,
        ),
        contenders,
    )


def _trace(suite: Suite, name: str) -> Path | None:
    return suite.traces / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.trace.json.gz" if suite.traces else None


@pytest.mark.importance(9)
@pytest.mark.quick
def test_small_step(suite: Suite) -> None:
    """In place of the whole step where time is short."""
    if not suite.quick:
        pytest.skip("the whole step is timed")
    compete(suite, "demo", batch=8, compiled=False)


@pytest.mark.importance(10)
@pytest.mark.on("cpu")
def test_step(suite: Suite) -> None:
    compete(suite, "demo", measures=True, compiled=False)


@pytest.mark.slow
@pytest.mark.on("cpu")
def test_compiled_step(suite: Suite) -> None:
    """With torch.compile, whose ways take minutes to begin."""
    compete(suite, "demo", measures=True, note=", compiled too", headline=False)


@pytest.mark.slow
@pytest.mark.on("cpu")
@pytest.mark.parametrize(("name", "batch"), [("64px", 16), ("256px", 4)])
def test_against_df_gan(suite: Suite, name: str, batch: int) -> None:
    """A preset's step against DF-GAN's published networks of the same resolution, with their own step, eager fp32."""
    config = preset(name)
    config.train = dataclasses.replace(config.train, batch_size=batch)
    size, every, device = config.model.image_size, config.loss.penalty_every, suite.device
    inputs, watch = make_inputs(config, device), Stopwatch(device)
    random = torch.Generator().manual_seed(0)
    real, sentence, noise = (
        torch.randn(batch, *shape, generator=random).to(device)
        for shape in ((3, size, size), (dfgan.SENTENCE,), (dfgan.NOISE,))
    )
    ours, theirs = Way("auto").prepare(config, device), dfgan.Step(size, device)
    dtype = Precision("auto", device).name
    suite.hold(
        Contest(
            "training step", f"{name}, batch {batch}, DF-GAN", "auto", "step", headline=True, work={"images": batch}
        ),
        {
            OURS: Contender(
                timed(ours, inputs, every, watch), "ours", dtype, peak(partial(ours, inputs, True), device)
            ),
            "DF-GAN": Contender(
                watch.timed(partial(theirs, real, sentence, noise), "step"),
                peak_bytes=peak(partial(theirs, real, sentence, noise), device),
            ),
        },
    )


@pytest.mark.importance(10)
@pytest.mark.on("cuda")
@pytest.mark.parametrize(("name", "batch"), [("256px", 32), ("256px", 64), ("128px", 32), ("64px", 64), ("demo", 64)])
def test_step_on_a_gpu(suite: Suite, name: str, batch: int) -> None:
    compete(suite, name, batch=batch, measures=(name, batch) == ("256px", 32))
