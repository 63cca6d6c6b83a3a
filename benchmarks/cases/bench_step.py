"""The whole training step: the engine's, peers' forms, and optimization by optimization what lies between.

Alternatives, on the same networks and inputs: (a) `peers' form, fp32`, eager with separate passes, (b) `eager + AMP`,
the same in bfloat16, and (c) `torch.compile` alone, the same with its parts compiled. The rows that begin with a plus
are the ablation: each has what the one above has and one optimization more. A step is weighed as in training: one in
`loss.penalty_every` has the gradient penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases.baselines import dfgan
from benchmarks.cases.baselines.separate_passes import SeparatePasses
from benchmarks.cases.training_step import configured, make_inputs, make_step
from benchmarks.harness.operator_case import reason
from benchmarks.harness.peak_memory import peak
from benchmarks.harness.result import OURS
from benchmarks.harness.roofline import Work
from benchmarks.harness.suite import Suite, Timed
from benchmarks.harness.timing import Sample, Sampler, Stopwatch, rounded
from fastt2i.config import Config
from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.engine.execution.compile_trial import compile_step
from fastt2i.engine.execution.cuda_graphs import WARM_UP, GraphedStep
from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.ops import tuning
from fastt2i.ops.dispatch.registry import forced

#: Takes inputs, and whether the step has the penalty.
RunStep = Callable[[StepInputs, bool], None]

PEERS, AMP, COMPILED = "peers' form, fp32", "eager + AMP", "torch.compile"
#: Calls by which the host launches kernels.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
NO_BF16 = "this processor has no instructions for bfloat16, and products take a hundred times as long without"
LONG = "compiling a step takes minutes on a CPU; -m slow does it"
#: A learning rate that leaves the losses as they are: its steps are beneath fp32's resolution of most parameters.
STILL = 1e-9
#: Relative difference of the first step's losses from those of peers' form, for the roundings of many layers.
BOUNDS = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Variant:
    """A way to run the step.

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
        """Of a first step, whose generator turn is judged by the discriminator as it was.

        At the usual rate Adam's first step has the same size for each parameter, in the gradient's direction: roundings
        of bf16 turn that of the smallest gradients, and the second turn's losses then compare two discriminators.
        """
        still = replace(config, optim=replace(config.optim, discriminator_lr=STILL))
        step = self._step(still, inputs.images.device)
        with self._forced():
            return step(inputs, torch.tensor(0.01, device=inputs.images.device), True)

    def prepare(self, config: Config, device: torch.device) -> RunStep:
        """The step on networks of its own."""
        step, weight = self._step(config, device), torch.tensor(0.01, device=device)

        def run(inputs: StepInputs, with_penalty: bool) -> None:
            with self._forced():
                step(inputs, weight, with_penalty)

        return GraphedStep(run, device, print) if self.graphed else run

    def warm_up(self, run: RunStep, inputs: StepInputs, tuned: bool = True) -> None:
        """Compile, capture and, on a GPU, tune."""
        with tuning() if tuned and inputs.images.is_cuda else nullcontext():
            for with_penalty in (False, True):
                for _ in range(1 + WARM_UP * self.graphed):
                    run(inputs, with_penalty)

    def _step(self, config: Config, device: torch.device) -> TrainStep:
        step = make_step(replace(config, train=replace(config.train, precision=self.precision)), device, self.kind)
        if isinstance(step, SeparatePasses):
            step.draws_once = self.draws_once
        return compile_step(step) if self.compiled else step

    def _forced(self) -> AbstractContextManager[None]:
        return forced(self.operators) if self.operators else nullcontext()


peers = partial(Variant, kind=SeparatePasses, draws_once=False, operators="reference")
ALTERNATIVES = {PEERS: peers("fp32"), AMP: peers("bf16"), COMPILED: peers("fp32", compiled=True)}
ABLATION = {
    "+ one generator pass": peers("fp32", draws_once=True),
    "+ one trunk pass, text in the head": Variant("fp32", operators="reference"),
    "+ fused operators": Variant("fp32"),
    "+ bf16": Variant("bf16"),
    "+ torch.compile": Variant("auto", compiled=True),
}


def sampler(run: RunStep, inputs: StepInputs, every: int, watch: Stopwatch) -> Sampler:
    """An average step, where one in `every` has the penalty: one with it and one without are timed."""

    def both(lap: Callable[[], None]) -> None:
        for with_penalty in (True, False):
            run(inputs, with_penalty)
            lap()

    def sample(repeats: int) -> Sample:
        with_it, without = watch.laps(both, repeats)
        return {"step": without + (with_it - without) / every}

    return sample


def launches(run: RunStep, inputs: StepInputs) -> str:
    """On a GPU: launches by the host, kernels, and the share of the step that the GPU is busy."""
    if not inputs.images.is_cuda:
        return ""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as found:
        torch.cuda.synchronize()
        for _ in range(3):
            run(inputs, False)
        torch.cuda.synchronize()
    events = found.profiler.kineto_results.events()
    launched = [event for event in events if event.name() in LAUNCHES]
    on_gpu = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in on_gpu)
    if not spans:
        return f", {len(launched) // 3} launches, no kernels seen"
    busy, end = 0, spans[0][0]
    for start, stop in spans:
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    share = busy / (end - spans[0][0])
    return f", {len(launched) // 3} launches, {len(on_gpu) // 3} kernels, busy {share:.1%}"


def work_of(step: TrainStep, inputs: StepInputs) -> Work:
    """Matrix products and convolutions of a step without penalty, and the bytes of parameters, moments and averages.

    Each parameter is read by the forward, its gradient is written and read, both moments are read and written, and it
    is written itself. What the penalty adds is left out (torch's counter cannot follow its derivatives), so that the
    bound is a little too low.
    """
    with FlopCounterMode(display=False) as counter:
        step(inputs, torch.tensor(0.01, device=inputs.images.device), False)
    modules = (step.generator.module, step.discriminator.module)
    return Work(4 * 8 * sum(p.numel() for module in modules for p in module.parameters()), counter.get_total_flops())


def check(config: Config, inputs: StepInputs, variants: dict[str, Variant]) -> dict[str, tuple[float, ...]]:
    """Relative differences of each variant's losses from those of peers' form; one beyond its bound fails."""
    right, found = ALTERNATIVES[PEERS].losses(config, inputs), {}
    for name, variant in variants.items():
        losses = variant.losses(config, inputs)
        off = [float((losses[k] - right[k]).abs() / right[k].abs().clamp(min=1e-2)) for k in right]
        bound = BOUNDS[Precision(variant.precision, inputs.images.device).name]
        assert max(off) <= bound, f"{name}: losses are off by {off}"
        found[name] = tuple(map(rounded, off))
    return found


def compare(
    suite: Suite,
    name: str,
    *,
    batch: int | None = None,
    ablation: bool = False,
    compiled: bool = True,
    note: str = "",
    headline: bool = True,
) -> None:
    """All variants of a preset's step."""
    config, device = configured(name, batch), suite.device
    batch, inputs = config.train.batch_size, make_inputs(config, device)
    variants = {OURS: Variant("auto", graphed=suite.on_cuda), **ALTERNATIVES}
    variants |= {"without graphs": Variant("auto")} if suite.on_cuda else {}
    variants |= ABLATION if ablation else {}
    no_bf16 = [name for name, way in variants.items() if way.precision == "bf16" and not multiplies_bf16(device)]
    too_long = [name for name, way in variants.items() if way.compiled and not compiled]
    unavailable = dict.fromkeys(no_bf16, NO_BF16) | dict.fromkeys(too_long, LONG)
    variants = {name: variant for name, variant in variants.items() if name not in unavailable}
    errors = check(config, inputs, {name: variant for name, variant in variants.items() if not variant.compiled})
    candidates: dict[str, Timed] = {}
    for variant_name, variant in variants.items():
        run = variant.prepare(config, device)
        try:
            variant.warm_up(run, inputs)
        except Exception as error:
            if not variant.compiled:
                raise
            unavailable[variant_name] = reason(error)
            continue
        candidates[variant_name] = Timed(
            sampler(run, inputs, config.loss.penalty_every, suite.watch),
            "" if variant_name in (OURS, *ALTERNATIVES) else "implementation",
            Precision(variant.precision, device).name + launches(run, inputs),
            # A replay allocates nothing: what a graph holds was taken at its capture.
            run.peak_bytes if isinstance(run, GraphedStep) else peak(partial(run, inputs, True), device),
        )
    suite.compare(
        candidates,
        f"{name}, batch {batch}{note}",
        operator="training step",
        dtype="auto",
        headline=headline,
        work={"images": batch},
        roofline=work_of(make_step(config, device), inputs).roofline(suite.limits, Precision("auto", device).dtype),
        errors=errors,
        unavailable=unavailable,
    )


@pytest.mark.importance(9)
@pytest.mark.quick
def test_small_step(benchmark: Suite) -> None:
    """In place of the whole step where time is short."""
    if not benchmark.quick:
        pytest.skip("the whole step is timed")
    compare(benchmark, "demo", batch=8, compiled=False)


@pytest.mark.importance(10)
@pytest.mark.on("cpu")
def test_step(benchmark: Suite) -> None:
    compare(benchmark, "demo", ablation=True, compiled=False)


@pytest.mark.slow
@pytest.mark.on("cpu")
def test_compiled_step(benchmark: Suite) -> None:
    """With torch.compile, which takes minutes for each variant."""
    compare(benchmark, "demo", ablation=True, note=", compiled too", headline=False)


@pytest.mark.slow
@pytest.mark.on("cpu")
@pytest.mark.parametrize(("name", "batch"), [("64px", 16), ("256px", 4)])
def test_against_df_gan(benchmark: Suite, name: str, batch: int) -> None:
    """A preset's step against DF-GAN's published networks of the same resolution, with their own step, eager fp32."""
    config, device, random = configured(name, batch), benchmark.device, torch.Generator().manual_seed(0)
    size, inputs, watch = config.model.image_size, make_inputs(config, device), benchmark.watch
    tensors = [
        torch.randn(batch, *shape, generator=random).to(device)
        for shape in ((3, size, size), (dfgan.SENTENCE,), (dfgan.NOISE,))
    ]
    ours, theirs = Variant("auto").prepare(config, device), partial(dfgan.Step(size, device), *tensors)
    precision, memory = Precision("auto", device).name, peak(partial(ours, inputs, True), device)
    benchmark.compare(
        {
            OURS: Timed(sampler(ours, inputs, config.loss.penalty_every, watch), OURS, precision, memory),
            "DF-GAN": Timed(watch.sampler(theirs), peak_bytes=peak(theirs, device)),
        },
        f"{name}, batch {batch}, DF-GAN",
        operator="training step",
        dtype="auto",
        headline=True,
        work={"images": batch},
    )


@pytest.mark.importance(10)
@pytest.mark.on("cuda")
@pytest.mark.parametrize(("name", "batch"), [("256px", 32), ("256px", 64), ("128px", 32), ("64px", 64), ("demo", 64)])
def test_step_on_a_gpu(benchmark: Suite, name: str, batch: int) -> None:
    compare(benchmark, name, batch=batch, ablation=(name, batch) == ("256px", 32))
