"""Training steps as CUDA graphs: after a warm-up, a step is a copy of its inputs and the replay of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.engine.step import StepInputs

#: Eager steps before a capture, in which kernels are compiled and timed and optimizer state is made.
WARM_UP = 3
#: Graphs at most: with and without the penalty, for a few numbers of keywords. Steps of other shapes run eagerly.
MAX_GRAPHS = 16

#: A step on these inputs, with the penalty or without, which keeps its results in tensors of its own.
StepFunction = Callable[[StepInputs, bool], None]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs


class GraphedStep:
    """Captures steps in CUDA graphs, one for each combination of input shapes and with the penalty or without.

    The first steps of a combination run eagerly, so capturing changes nothing of what is trained. Kernels, memory and
    streams of a graph are fixed; what changes from step to step is read from the input buffers and the `StepSchedule`.

    Args:
        run: the step.
        device: a GPU.
        print_line: prints a line for the user.
    """

    def __init__(self, run: StepFunction, device: torch.device, print_line: Callable[[str], None]) -> None:
        self._run = run
        self._device = device
        self._print_line = print_line
        self._eager_steps: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._enabled = True
        self._limit_reported = False

    def __call__(self, inputs: StepInputs, with_penalty: bool) -> None:
        """Run a step."""
        key = (with_penalty, *((tensor.shape, tensor.dtype) for tensor in _tensors(inputs)))
        if key not in self._graphs and self._should_capture(key):
            self._capture(key, inputs, with_penalty)
        graph = self._graphs.get(key)
        if graph is None:
            self._eager_steps[key] += 1
            self._run_on_capture_stream(inputs, with_penalty)
            return
        torch._foreach_copy_(_tensors(graph.inputs), _tensors(inputs))
        graph.graph.replay()

    def _should_capture(self, key: Any) -> bool:
        ready = self._enabled and self._eager_steps[key] >= WARM_UP
        if ready and len(self._graphs) >= MAX_GRAPHS:
            if not self._limit_reported:
                self._limit_reported = True
                self._print_line(
                    f"{MAX_GRAPHS} kinds of steps are captured in CUDA graphs; those of other shapes run as they are"
                )
            return False
        return ready

    def _run_on_capture_stream(self, inputs: StepInputs, with_penalty: bool) -> None:
        """Run eagerly on the stream that is captured later: autograd remembers the stream of the forward pass."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run(inputs, with_penalty)
        current.wait_stream(self._stream)

    def _capture(self, key: Any, inputs: StepInputs, with_penalty: bool) -> None:
        static = _like(inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of the loader may call CUDA meanwhile, which is no concern of this thread's graph.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._run(static, with_penalty)
        except RuntimeError as error:
            self._enabled = False
            torch.cuda.synchronize(self._device)
            self._print_line(f"warning: a step cannot be captured in a CUDA graph, and steps run as they are: {error}")
            return
        self._graphs[key] = _Graph(graph, static)


def _tensors(inputs: StepInputs) -> list[Tensor]:
    flat = (tensor for part in inputs for tensor in (part if isinstance(part, tuple) else (part,)))
    return [tensor for tensor in flat if tensor is not None]


def _like(part: Any) -> Any:
    """Buffers of the same shapes, empty."""
    if isinstance(part, tuple):
        return type(part)(*(_like(p) for p in part))
    return None if part is None else torch.empty_like(part)
