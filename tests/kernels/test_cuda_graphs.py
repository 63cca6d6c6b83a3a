"""Operators in a CUDA graph: a replay on new inputs gives what the same calls give outside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastt2i.ops import gate, gated_conv2d, region_keyword_loss, tuning, upsample_gated_conv2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

Losses = dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]]
LOSSES: Losses = {
    "gate": (lambda pre: gate(pre, impl="triton").square().sum(), [(4, 32, 8, 8)]),
    "gated_conv2d": (
        lambda x, w: gated_conv2d(x, w, padding=1, impl="triton").square().sum(),
        [(4, 16, 8, 8), (64, 16, 3, 3)],
    ),
    "upsample_gated_conv2d": (
        lambda x, w: upsample_gated_conv2d(x, w, impl="triton").square().sum(),
        [(4, 16, 8, 8), (64, 16, 3, 3)],
    ),
    "upsample_gated_conv2d in PyTorch": (
        lambda x, w: upsample_gated_conv2d(x, w, impl="torch").square().sum(),
        [(4, 16, 8, 8), (64, 16, 3, 3)],
    ),
    "region_keyword_loss": (
        lambda v, e: region_keyword_loss(v, e, impl="triton"),
        [(6, 64, 32), (6, 9, 32)],
    ),
}


def loss_and_gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    loss = run(*inputs)
    return [loss, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("op", LOSSES)
def test_a_replay_on_new_inputs(op: str) -> None:
    run, shapes = LOSSES[op]
    torch.manual_seed(0)
    static = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), tuning():  # compiles the kernels, and takes the times
        for _ in range(3):
            loss_and_gradients(run, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), tuning():
        captured = loss_and_gradients(run, static)
    for _ in range(2):
        fresh = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
        with torch.no_grad():
            for buffer, value in zip(static, fresh, strict=True):
                buffer.copy_(value)
        graph.replay()
        torch.testing.assert_close(captured, loss_and_gradients(run, fresh))


def test_a_call_that_was_not_timed_raises_in_capture() -> None:
    x, weight = torch.randn(2, 16, 24, 40, device="cuda"), torch.randn(64, 16, 3, 3, device="cuda")
    with (
        pytest.raises(RuntimeError, match="nothing can be timed while a CUDA graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
        tuning(),
    ):
        gated_conv2d(x, weight)
