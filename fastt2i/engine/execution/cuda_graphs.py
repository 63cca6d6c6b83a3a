"""Whole training steps as CUDA graphs: after a few steps of a kind, one of it is a copy of its inputs and a replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.engine.step import StepInputs

#: Steps of a kind that run as they are before it is captured: kernels are compiled and timed, state is made.
WARM_UP = 3
#: Kinds that are captured: with and without the penalty, for a few widths of the captions. Others run as they are.
MOST_KINDS = 16

#: What is captured: a step on these inputs, with the penalty or without, that leaves what it gives in its own tensors.
Run = Callable[[StepInputs, bool], None]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs


class GraphedStep:
    """Steps that are captured in CUDA graphs, one for each kind: shapes of the inputs, and with the penalty or without.

    The first steps of a kind are taken as they are, so capturing changes nothing of what is trained. Kernels, memory
    and streams of a graph are fixed; what changes from step to step is read from the inputs' buffers and the clock.

    Args:
        run: the step.
        device: a GPU.
        say: tells the user what is going on.
    """

    def __init__(self, run: Run, device: torch.device, say: Callable[[str], None]) -> None:
        self._run = run
        self._device = device
        self._say = say
        self._seen: Counter[Any] = Counter()
        self._captured: dict[Any, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._capturing = True
        self._told = False

    def __call__(self, inputs: StepInputs, with_penalty: bool) -> None:
        """Take a step."""
        kind = (with_penalty, *((tensor.shape, tensor.dtype) for tensor in _tensors(inputs)))
        if kind not in self._captured and self._is_ripe(kind):
            self._capture(kind, inputs, with_penalty)
        captured = self._captured.get(kind)
        if captured is None:
            self._seen[kind] += 1
            self._run_aside(inputs, with_penalty)
            return
        torch._foreach_copy_(_tensors(captured.inputs), _tensors(inputs))
        captured.graph.replay()

    def _is_ripe(self, kind: Any) -> bool:
        ripe = self._capturing and self._seen[kind] >= WARM_UP
        if ripe and len(self._captured) >= MOST_KINDS:
            if not self._told:
                self._told = True
                self._say(
                    f"{MOST_KINDS} kinds of steps are captured in CUDA graphs; those of other shapes run as they are"
                )
            return False
        return ripe

    def _run_aside(self, inputs: StepInputs, with_penalty: bool) -> None:
        """On the stream that is captured later: what a backward pass remembers of its stream has to be that one."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run(inputs, with_penalty)
        current.wait_stream(self._stream)

    def _capture(self, kind: Any, inputs: StepInputs, with_penalty: bool) -> None:
        static = _like(inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of the loader may call CUDA meanwhile, which concerns the graph of this thread no more than them.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._run(static, with_penalty)
        except RuntimeError as error:
            self._capturing = False
            torch.cuda.synchronize(self._device)
            self._say(f"warning: a step cannot be captured in a CUDA graph, and steps run as they are: {error}")
            return
        self._captured[kind] = _Captured(graph, static)


def _tensors(inputs: StepInputs) -> list[Tensor]:
    flat = (tensor for part in inputs for tensor in (part if isinstance(part, tuple) else (part,)))
    return [tensor for tensor in flat if tensor is not None]


def _like(part: Any) -> Any:
    """Buffers of the same shapes, empty."""
    if isinstance(part, tuple):
        return type(part)(*(_like(p) for p in part))
    return None if part is None else torch.empty_like(part)
