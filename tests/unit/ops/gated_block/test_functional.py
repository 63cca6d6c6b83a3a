"""A generator's block as one operator: its definition, both derivatives, what runs on a CPU, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops import modulated_gated_block, modulated_gated_conv2d, modulated_upsample_gated_conv2d
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gated_block import reference
from fastt2i.ops.gated_block.functional import ModulatedConv

GAIN = 0.75
SLOPES = [1.0, 0.2]


def inputs(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (3, 2)) -> list[Tensor]:
    """x, then both convolutions; 2 images of 2 channels, to 3."""
    random = torch.Generator().manual_seed(0)
    convs = [shape for channels in (2, 3) for shape in ((6, channels, 3, 3), (6,), (2, 3), (2, 3))]
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((2, 2, *size), *convs)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def block(*given: Tensor, **options: Any) -> Tensor:
    return modulated_gated_block(given[0], ModulatedConv(*given[1:5]), ModulatedConv(*given[5:]), **options)


def parts(given: list[Tensor], output_slope: float, **options: Any) -> Tensor:
    u = modulated_upsample_gated_conv2d(*given[:5], **options)
    y = modulated_gated_conv2d(u, *given[5:], residual=u, gain=GAIN, padding=1, **options)
    return y if output_slope == 1 else F.leaky_relu(y, output_slope)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("output_slope", SLOPES)
def test_it_is_what_it_says(output_slope: float, impl: str) -> None:
    given = inputs()
    found = block(*given, gain=GAIN, output_slope=output_slope, impl=impl)
    torch.testing.assert_close(found, parts(given, output_slope, impl="reference"))
    assert found.shape == (2, 3, 6, 4)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("output_slope", SLOPES)
def test_it_differentiates_twice(output_slope: float, impl: str) -> None:
    given = tuple(inputs(size=(1, 1)))

    def run(*tensors: Tensor) -> Tensor:
        return block(*tensors, gain=GAIN, activation="silu", output_slope=output_slope, impl=impl)

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


@pytest.mark.parametrize("output_slope", SLOPES)
def test_on_a_cpu_it_is_its_parts_to_the_bit(output_slope: float) -> None:
    given = inputs(torch.float32, (20, 20))
    given[0] = given[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    ys = block(*given, gain=GAIN, output_slope=output_slope), parts(given, output_slope)
    assert torch.equal(*ys) and ys[0].stride() == ys[1].stride()
    upstream = torch.randn_like(ys[0])
    for found, expected in zip(*(torch.autograd.grad(y, given, upstream) for y in ys), strict=True):
        assert torch.equal(found, expected)


def test_under_autocast_everything_is_cast() -> None:
    given = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(*given, output_slope=0.2)
    assert torch.equal(y, block(*(t.to(torch.bfloat16) for t in given), output_slope=0.2))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in given)


def test_transforms() -> None:
    given = [tensor.detach() for tensor in inputs(torch.float32)]

    def total(scale: Tensor) -> Tensor:
        return block(*given[:3], scale, *given[4:], output_slope=0.2).square().sum()

    expected = torch.autograd.functional.jacobian(total, given[3])
    torch.testing.assert_close(torch.func.grad(total)(given[3]), expected)


@pytest.mark.parametrize("output_slope", SLOPES)
def test_it_compiles_without_a_graph_break(output_slope: float) -> None:
    given = inputs()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    ys = [run(*given, gain=GAIN, output_slope=output_slope) for run in (compiled, block)]
    torch.testing.assert_close(*ys)
    for found, expected in zip(*(torch.autograd.grad(y.square().sum(), given) for y in ys), strict=True):
        torch.testing.assert_close(found, expected)


def test_each_convolution_is_dispatched_by_itself_on_a_cpu() -> None:
    with registry.recorded() as choices:
        block(*inputs(torch.float32))
    names = [call.op for call, _ in choices]
    assert names[0] == "modulated_gated_block" and choices[0][1] == "torch"
    assert {"modulated_upsample_gated_conv2d", "modulated_gated_conv2d"} <= set(names)


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        (0, torch.zeros(2, 3, 3), r"x has shape \(2, 3, 3\); it must be \(B, Cin, H, W\)$"),
        (1, torch.zeros(6, 2, 1, 1), r"upsampling: weight has a kernel of \(1, 1\); it must be \(3, 3\)"),
        (3, torch.zeros(2, 6), r"upsampling: scale has shape \(2, 6\); it must be \(2, 3\)"),
        (5, torch.zeros(6, 2, 3, 3), "residual: x has 3 channels and weight has 6 rows of 2"),
        (6, torch.zeros(4), r"residual: bias has shape \(4,\); it must be \(6,\)"),
        (7, torch.zeros(2, 3, dtype=torch.float64), "residual: scale is torch.float64 but x is torch.float32"),
        (8, None, "residual: shift is a NoneType; it must be a torch.Tensor"),
    ],
)
def test_mistakes(place: int, wrong: Any, sentence: str) -> None:
    given: list[Any] = inputs(torch.float32)
    given[place] = wrong
    with pytest.raises((TypeError, ValueError), match=sentence):
        block(*given)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gain": float("nan")}, "gain is nan; it must be finite"),
        ({"output_slope": 0.0}, "output_slope is 0.0; it must be more than 0"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
    ],
)
def test_wrong_settings(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        block(*inputs(torch.float32), **options)


def test_the_residual_convolution_gives_as_many_channels_as_it_takes() -> None:
    x, *first = inputs(torch.float32)[:5]
    wider = ModulatedConv(torch.zeros(10, 3, 3, 3), None, torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="residual's weight has 10 rows and upsampling's has 6; they must agree"):
        modulated_gated_block(x, ModulatedConv(*first), wider)


def test_a_leaky_relu_of_slope_one_is_none() -> None:
    y = torch.randn(3)
    assert reference.finish(y, 1.0) is y
