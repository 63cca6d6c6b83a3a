"""The kernels of an upsampling convolution made by one launch: in float32 bit for bit what torch makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastt2i.kernels import gated_conv as conv_kernels
from fastt2i.kernels import transposed_weight as kernels
from fastt2i.ops.gated_conv import torch_impl
from fastt2i.ops.gated_conv.triton_ops import transposed_weight, transposed_weight_backward

pytestmark = pytest.mark.usefixtures("poisoned")

#: Output channels, which are twice any number, and input channels: of a tile that is not full, and of several.
SIZES = [(2, 1), (6, 5), (34, 33)]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
#: A sum of four is rounded once; the interpreter cuts bfloat16 off.
BOUNDS = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-7}


def draw(*shape: int, device: torch.device, dtype: torch.dtype, layout: str) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)
    return x.contiguous(memory_format=FORMATS[layout])


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    bound = BOUNDS[dtype] * expected.float().abs()
    return ours.dtype == dtype and bool(((ours.float() - expected.float()).abs() <= bound).all())


@pytest.mark.parametrize(
    ("size", "layout", "dtype"),
    [
        *((size, layout, torch.float32) for size in SIZES for layout in FORMATS),
        *(((6, 5), "channels_last", dtype) for dtype in (torch.float16, torch.bfloat16)),
    ],
)
def test_kernels_and_their_gradient(
    size: tuple[int, int], layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    rows, columns = size
    weight = draw(rows, columns, 3, 3, device=device, dtype=dtype, layout=layout)
    made = kernels.forward(weight)
    assert close(made, torch_impl.transposed_weight(weight.float()), dtype)
    assert made.is_contiguous(memory_format=torch.channels_last)
    packed = conv_kernels.pack(torch_impl.phase_weights(weight.float()).flatten(0, 1))
    assert close(kernels.packed_phases(weight), packed, dtype)
    upstream = draw(columns, rows, 4, 4, device=device, dtype=dtype, layout=layout)
    gradient = kernels.backward(upstream, weight)
    assert close(gradient, torch_impl.transposed_weight_backward(upstream.float()), dtype)
    assert gradient.stride() == weight.stride()


def test_no_channels(device: torch.device) -> None:
    weight = torch.empty(4, 0, 3, 3, device=device)
    assert kernels.forward(weight).shape == (0, 4, 4, 4) and kernels.packed_phases(weight).numel() == 0
    assert kernels.backward(kernels.forward(weight), weight).shape == weight.shape


@pytest.mark.parametrize("layout", FORMATS)
def test_both_orders_of_derivatives(layout: str, device: torch.device) -> None:
    weight = draw(6, 5, 3, 3, device=device, dtype=torch.float32, layout=layout).requires_grad_()
    upstream = draw(5, 6, 4, 4, device=device, dtype=torch.float32, layout=layout).requires_grad_()
    for op, arguments in ((transposed_weight, (weight,)), (transposed_weight_backward, (upstream, weight))):
        torch.library.opcheck(op, arguments)
    mixture = draw(6, 5, 3, 3, device=device, dtype=torch.float32, layout="nchw") + 1
    (dweight,) = torch.autograd.grad(transposed_weight(weight), weight, upstream, create_graph=True)
    (dupstream,) = torch.autograd.grad(dweight, upstream, mixture)
    assert torch.equal(dweight, torch_impl.transposed_weight_backward(upstream))
    assert torch.equal(dupstream, torch_impl.transposed_weight(mixture))
