"""The gate's kernels against a float64 reference: values and both derivatives, in every layout, with unwritten lanes
showing as NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastt2i.ops import gate
from fastt2i.ops.gate.reference import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned")

#: Rounding of inputs is not the kernel's: they are drawn in the dtype. Outputs are rounded once.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = [
    (2, 6, 5, 3),
    (1, 2, 1, 1),
    (3, 14, 9, 7),
    (2, 130, 3, 3),
    (2, 4, 63, 33),
    (5, 8),
    (2, 6, 11),
    (2, 2, 3, 4, 5),
]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random).to(device, dtype)
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


def error(ours: Tensor, truth: Tensor) -> float:
    return ((ours.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()


def all_derivatives(pre: Tensor, upstream: Tensor, second: Tensor, **options: object) -> dict[str, Tensor]:
    """y, its gradient, and the gradients of that gradient."""
    pre, upstream = pre.detach().requires_grad_(), upstream.detach().requires_grad_()
    y = gate(pre, **options)
    (dpre,) = torch.autograd.grad(y, pre, upstream, create_graph=True)
    ddy, d2pre = torch.autograd.grad(dpre, (upstream, pre), second)
    return {"y": y.detach(), "dpre": dpre.detach(), "ddy": ddy, "d2pre": d2pre}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_and_derivatives(activation: str, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    for shape in SHAPES[:5]:
        half = (shape[0], shape[1] // 2, *shape[2:])
        inputs = [draw(s, dtype, device, layout, n) for n, s in enumerate((shape, half, shape))]
        ours = all_derivatives(*inputs, activation=activation, impl="triton")
        truth = all_derivatives(*(x.double() for x in inputs), activation=activation, impl="reference")
        for name in ours:
            assert ours[name].dtype == dtype and ours[name].shape == truth[name].shape
            bound = BOUNDS[dtype]
            scale = truth[name].norm()
            # Second derivatives of piecewise linear activations in f are zero: bound them by the others' size.
            difference = (ours[name].double() - truth[name]).norm()
            assert difference <= bound * max(scale, truth["dpre"].norm() if name == "d2pre" else scale), (name, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_any_number_of_dimensions_and_strides(shape: tuple[int, ...], layout: str, device: torch.device) -> None:
    pre = draw(shape, torch.float32, device, layout)
    assert error(gate(pre, impl="triton"), gate(pre.double(), impl="reference")) < 1e-6


def test_layouts_are_kept_and_nothing_is_copied(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_copy(self: Tensor, *arguments: object, **options: object) -> Tensor:
        raise AssertionError("a copy")

    pre = draw((2, 6, 5, 4), torch.float32, device, "channels_last")
    crop = draw((2, 6, 5, 4), torch.float32, device, "contiguous")[:, :, 1:3]
    monkeypatch.setattr(Tensor, "contiguous", no_copy)
    assert gate(pre, impl="triton").is_contiguous(memory_format=torch.channels_last)
    assert gate(crop[:, :, :, :], impl="triton").is_contiguous()


def test_nan_stays_nan(device: torch.device) -> None:
    for activation in ACTIVATIONS:
        pre = torch.zeros(1, 2, 3, device=device)
        pre[0, 0, 1] = torch.nan
        assert gate(pre, activation=activation, impl="triton").isnan().tolist() == [[[False, True, False]]], activation


def test_the_bias_gets_the_sum_and_passes_second_derivatives(device: torch.device) -> None:
    from fastt2i.ops.gate.triton_ops import gate_backward

    pre = draw((3, 10, 40, 41), torch.float32, device, "channels_last").requires_grad_()
    dy = draw((3, 5, 40, 41), torch.float32, device, "contiguous", 1).requires_grad_()
    dpre, dbias = gate_backward(dy, pre, "silu", 0.2)
    exact = dpre.double().sum(dim=(0, 2, 3))
    assert error(dbias, exact) < 1e-5
    again = gate_backward(dy, pre, "silu", 0.2)[1]
    assert torch.equal(dbias, again)
    weight = torch.arange(10.0, device=device)
    ours = torch.autograd.grad((dbias * weight).sum(), (dy, pre))
    wide = pre.detach().double().requires_grad_(), dy.detach().double().requires_grad_()
    y = gate(wide[0], activation="silu", impl="reference")
    (dwide,) = torch.autograd.grad(y, wide[0], wide[1], create_graph=True)
    truth = torch.autograd.grad((dwide.sum(dim=(0, 2, 3)) * weight).sum(), (wide[1], wide[0]))
    for a, b in zip(ours, truth, strict=True):
        assert error(a, b) < 1e-5


def test_empty(device: torch.device) -> None:
    pre = torch.zeros(0, 4, 3, 3, device=device, requires_grad=True)
    y = gate(pre, impl="triton")
    y.sum().backward()
    assert y.shape == (0, 2, 3, 3) and pre.grad is not None and pre.grad.shape == pre.shape


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.gate.triton_ops import gate as op
    from fastt2i.ops.gate.triton_ops import gate_backward, gate_backward_backward

    for layout in ("contiguous", "channels_last"):
        pre = draw((2, 6, 5, 3), torch.float32, device, layout).requires_grad_()
        dy = draw((2, 3, 5, 3), torch.float32, device, layout).requires_grad_()
        torch.library.opcheck(op, (pre, "silu", 0.2))
        torch.library.opcheck(gate_backward, (dy, pre, "leaky_relu", 0.2))
        ddpre = draw((2, 6, 5, 3), torch.float32, device, layout)
        torch.library.opcheck(gate_backward_backward, (ddpre, dy.detach(), pre.detach(), "silu", 0.2))


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    pre = draw((2, 6, 5, 3), torch.float32, device, "channels_last").requires_grad_()
    compiled = torch.compile(lambda x: gate(x, impl="triton"), fullgraph=True, backend="aot_eager")
    y = compiled(pre)
    torch.testing.assert_close(y, gate(pre, impl="triton"))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), pre), torch.autograd.grad(gate(pre, impl="triton").sum(), pre)
    )


def test_float64_is_refused_in_one_sentence(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="gate: impl='triton' cannot run: the kernels compute in float32"):
        gate(torch.zeros(1, 2, dtype=torch.float64, device=device), impl="triton")
