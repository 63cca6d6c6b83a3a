"""Captured steps train as those that run as they are: rates, averages, losses and shapes included."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from fastt2i.config import EngineConfig, LossConfig, OptimConfig
from fastt2i.engine.execution import cuda_graphs as graphs
from fastt2i.engine.execution.cuda_graphs import MAX_GRAPHS, WARM_UP
from fastt2i.engine.execution.gradient_cache import AccumulatedStep
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.engine.schedule import StepSchedule
from fastt2i.engine.step import StepInputs, TrainStep
from tests.unit.engine.test_step import make, make_inputs, weights

GPU = torch.device("cuda")
OPTIM = OptimConfig(warmup=5, schedule="cosine")
LOSS = LossConfig(penalty_every=4, augment=("translation",))


def runner(step: TrainStep, device: torch.device, graphed: str, said: list[str]) -> StepRunner:
    return StepRunner(
        step,
        StepSchedule(OPTIM, 60, (step.generator, step.discriminator), step.ema),
        EngineConfig(graphs=graphed, compile="off"),
        device=device,
        steps=60,
        compiled_before=None,
        print_line=said.append,
    )


def on(device: torch.device, inputs: StepInputs) -> StepInputs:
    def move(part: object) -> object:
        if isinstance(part, tuple):
            return type(part)(*map(move, part))
        return part.to(device) if isinstance(part, torch.Tensor) else part

    return StepInputs(*map(move, inputs))


def test_graphs_that_cannot_be_are_said_once() -> None:
    said: list[str] = []
    run, inputs = runner(make(LOSS), torch.device("cpu"), "on", said), make_inputs(make(LOSS))
    for number in range(3):
        run(inputs, number)
    assert said == ["engine.graphs is on, but only steps on a GPU can be captured, and this is the cpu"]
    assert set(run.losses.read()) >= {"d_adversarial", "g_adversarial", "d_penalty"}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """In place of a GPU: what every capture was given, in which nothing is captured, and replays do nothing."""
    given: list[dict[str, object]] = []

    @contextmanager
    def capture(graph: object, **options: object) -> Iterator[None]:
        given.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "graph", capture)
    for name in ("graph_pool_handle", "Stream", "CUDAGraph", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, MagicMock(return_value=0))
    return given


def of_width(inputs: StepInputs, width: int) -> StepInputs:
    """The same with so many keywords for each caption."""
    text = inputs.text
    return inputs._replace(
        text=text._replace(keywords=text.keywords.repeat(1, width, 1), mask=text.mask.repeat(1, width))
    )


def test_steps_of_more_shapes_than_are_captured_are_told_of_once(captures: list[dict[str, object]]) -> None:
    said: list[str] = []
    taken: list[int] = []
    run = graphs.GraphedStep(lambda inputs, _: taken.append(inputs.text.mask.shape[1]), GPU, said.append)
    inputs = make_inputs(make(LOSS))
    for width in range(1, MAX_GRAPHS + 3):
        for _ in range(WARM_UP + 2):
            run(of_width(inputs, width), False)
    assert said == ["16 kinds of steps are captured in CUDA graphs; those of other shapes run as they are"]
    assert len(captures) == MAX_GRAPHS
    assert taken.count(4 * (MAX_GRAPHS + 2)) == WARM_UP + 2
    # Threads of the loader must be able to call CUDA while a step is captured.
    assert {options["capture_error_mode"] for options in captures} == {"thread_local"}


class FakeGpu:
    """In place of a GPU: the current stream, the captures that the allocator holds to be under way, and memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default = self.current = MagicMock(name="default stream")
        self.under_way: list[object] = []
        self.references = 1  # to the pool, beside those of captures: as of a graph that was captured before
        self.allocated = self.peak = 1000
        self.broken = False
        self.graph = MagicMock(capture_begin=self.begin, capture_end=self.end)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self.graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: MagicMock(device=device, device_index=0))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", self.set_stream)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset_peak)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: None)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)

    def set_stream(self, stream: object) -> None:
        self.current = stream

    def reset_peak(self, device: object) -> None:
        self.peak = self.allocated

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield  # as torch's own: `capture_end` raises before this is reached
        self.current = before

    def begin(self, pool: object, **_: object) -> None:
        self.under_way.append(pool)
        self.references += 1
        self.broken = False

    def forbidden(self) -> None:
        """An operation that cannot be captured."""
        if self.under_way:
            self.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    def end(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.end_allocating(0, self.under_way[-1])
        self.references -= 1  # as when the graph is gone

    def end_allocating(self, device: int, pool: object) -> None:
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, device: int, pool: object) -> None:
        self.references -= 1


def as_before(gpu: FakeGpu) -> bool:
    return gpu.current is gpu.default and not gpu.under_way and gpu.references == 1


@pytest.mark.parametrize("fault", ["forbidden operation", "other error"])
def test_a_capture_that_fails_leaves_nothing_open(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the stream nor the allocator's pool; steps go on as they are, and no other is captured."""
    gpu, said, taken = FakeGpu(monkeypatch), [], []

    def run_step(inputs: StepInputs, with_penalty: bool) -> None:
        taken.append(bool(gpu.under_way))
        if fault == "forbidden operation":
            gpu.forbidden()
        elif gpu.under_way:
            raise ValueError("no times for this call")

    run, inputs = graphs.GraphedStep(run_step, GPU, said.append), make_inputs(make(LOSS))
    for number in range(2 * WARM_UP + 4):
        run(inputs, number % 2 == 0)
        assert as_before(gpu)
    reason = "CUDA error: operation not permitted when stream is capturing"
    if fault == "other error":
        reason = "no times for this call"
    assert said == [f"warning: a step cannot be captured in a CUDA graph, and steps run as they are: {reason}"]
    assert taken.count(True) == 1 and taken.count(False) == 2 * WARM_UP + 4
    assert run.peak_bytes == 0


def test_an_interrupt_during_a_capture_leaves_nothing_open_and_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, said = FakeGpu(monkeypatch), []

    def run_step(inputs: StepInputs, with_penalty: bool) -> None:
        if gpu.under_way:
            gpu.broken = True
            raise KeyboardInterrupt

    run, inputs = graphs.GraphedStep(run_step, GPU, said.append), make_inputs(make(LOSS))
    for _ in range(WARM_UP):
        run(inputs, False)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, False)
    assert as_before(gpu) and not said


def test_the_memory_of_a_captured_step_is_that_of_its_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what was allocated; the eager steps before may have taken more."""
    gpu = FakeGpu(monkeypatch)

    def run_step(inputs: StepInputs, with_penalty: bool) -> None:
        gpu.peak = max(gpu.peak, gpu.allocated + (50 if not gpu.under_way else 40 if with_penalty else 30))

    run, inputs = graphs.GraphedStep(run_step, GPU, print), make_inputs(make(LOSS))
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *_: None)
    for with_penalty in (True, False):
        for _ in range(WARM_UP + 2):
            run(inputs, with_penalty)
    assert run.peak_bytes == 40


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same kernels give the same numbers."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises where the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


#: Steps after which both kinds are captured, a penalty coming every 4.
CAPTURED_BY = 4 * (WARM_UP + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.usefixtures("deterministic")
def test_captured_steps_are_those_that_run_as_they_are(precision: str, parts: int) -> None:
    """To the bit: both players' turns and the penalty launch the same kernels; the host waits only to log."""
    said: list[str] = []
    steps = [make(LOSS, precision, device=GPU) for _ in range(2)]
    if parts > 1:
        steps = [AccumulatedStep(step, parts) for step in steps]
    captured, plain = (runner(step, GPU, how, said) for step, how in zip(steps, ("on", "off"), strict=True))
    for number in range(50):
        inputs = on(GPU, make_inputs(steps[0], number))
        with nothing_waits() if number > CAPTURED_BY else nullcontext():
            captured(inputs, number)
            plain(inputs, number)
        if number % 10 == 9:
            losses = captured.losses.read()
            assert losses == plain.losses.read()
            assert {"d_adversarial", "d_penalty", "d_region", "g_adversarial", "g_region", "g_sentence"} <= set(losses)
    assert not said
    assert len(captured._trial._run._graphs) == 2  # with and without the penalty
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*map(weights, steps), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_shapes_are_captured_anew_and_nothing_waits() -> None:
    step, said = make(LOSS, device=GPU), []
    run = runner(step, GPU, "on", said)
    wide = on(GPU, make_inputs(step))
    narrow = wide._replace(text=wide.text._replace(keywords=wide.text.keywords[:, :2], mask=wide.text.mask[:, :2]))
    for number in range(6 * (WARM_UP + 1)):
        run(narrow if number % 2 else wide, number)
    assert len(run._trial._run._graphs) >= 3 and not said
    with nothing_waits():
        for number in range(40, 48):
            run(wide, number)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_cannot_be_captured_runs_as_it_is() -> None:
    said: list[str] = []
    taken: list[bool] = []

    def waits(inputs: StepInputs, with_penalty: bool) -> None:
        taken.append(with_penalty)
        inputs.noise.sum().item()

    run = graphs.GraphedStep(waits, GPU, said.append)
    inputs = on(GPU, make_inputs(make(LOSS)))
    default = torch.cuda.current_stream(GPU)
    for _ in range(WARM_UP + 3):
        run(copy.copy(inputs), False)
    assert len(said) == 1 and said[0].startswith("warning: a step cannot be captured in a CUDA graph")
    assert torch.cuda.current_stream(GPU) == default
    # Memory that another stream has read is used again: no capture is held to be under way.
    other = torch.cuda.Stream(GPU)
    places = set()
    for _ in range(20):
        block = torch.empty(2**22, device=GPU)
        block.record_stream(other)
        places.add(block.data_ptr())
        del block
        torch.cuda.synchronize(GPU)
    assert len(places) <= 2
    torch.cuda.empty_cache()  # raises no error of an open capture either


@pytest.mark.parametrize(("tune", "exact", "timed"), [("on", False, True), ("on", True, False), ("off", False, False)])
def test_cudnn_times_its_algorithms_in_steps_that_may_differ_in_rounding(
    tune: str, exact: bool, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = make(LOSS), []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", exact)
    run = runner(step, torch.device("cpu"), "off", [])
    run._tunes, run._device = tune == "on", GPU
    monkeypatch.setattr(run, "_trial", lambda *_: seen.append(torch.backends.cudnn.benchmark))
    run(make_inputs(step), 0)
    assert seen == [timed] and not torch.backends.cudnn.benchmark
