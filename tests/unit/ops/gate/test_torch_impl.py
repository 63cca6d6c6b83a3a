"""The gate in PyTorch: equal to the definition, differentiable twice, under torch.func too."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from fastt2i.ops.gate import reference, torch_impl
from fastt2i.ops.gate.reference import ACTIVATIONS
from tests.unit.ops.gated_conv.test_torch_impl import all_results, draw


@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_lean_gate_is_the_definition(activation: str, slope: float, channels_last: bool) -> None:
    pre = draw(2, 6, 5, 3)
    pre = pre.contiguous(memory_format=torch.channels_last) if channels_last else pre
    before = pre.clone()
    ours, truth = (
        all_results(lambda t, run=run: run(t, activation, slope), pre) for run in (torch_impl.gate, reference.gate)
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.equal(pre, before)
    run = torch_impl.gate
    assert torch.autograd.gradgradcheck(lambda t: run(t, activation, slope), pre.requires_grad_())


def test_the_lean_gate_can_be_transformed() -> None:
    """Gradients of each sample, and forward mode, by torch.func and without."""
    pre, run = draw(3, 6, 5, 3), torch_impl.gate
    loss = lambda t: run(t[None], "tanh", 0.2).square().sum()  # noqa: E731
    whole = pre.clone().requires_grad_()
    (truth,) = torch.autograd.grad(run(whole, "tanh", 0.2).square().sum(), whole)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(pre), truth)
    _, along = torch.func.jvp(lambda t: run(t, "tanh", 0.2).square().sum(), (pre,), (truth,))
    torch.testing.assert_close(along, truth.square().sum())
    with forward_ad.dual_level():
        loss_of_dual = run(forward_ad.make_dual(pre, truth), "tanh", 0.2).square().sum()
        torch.testing.assert_close(forward_ad.unpack_dual(loss_of_dual).tangent, truth.square().sum())


def test_short_rows_are_those_that_fill_no_two_registers() -> None:
    for dtype, channels in ((torch.float32, 32), (torch.bfloat16, 64)):
        for less in (0, 1):
            pre = torch.zeros(1, 2 * (channels - less), 3, 3, dtype=dtype)
            assert not torch_impl.has_short_rows(pre)
            assert torch_impl.has_short_rows(pre.contiguous(memory_format=torch.channels_last)) == bool(less)
