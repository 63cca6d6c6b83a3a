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
    assert len(captured._trial._run._captured) == 2  # with and without the penalty
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
    assert len(run._trial._run._captured) >= 3 and not said
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
    for _ in range(WARM_UP + 3):
        run(copy.copy(inputs), False)
    assert len(said) == 1 and said[0].startswith("warning: a step cannot be captured in a CUDA graph")
