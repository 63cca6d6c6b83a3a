"""The convolution to an image: PyTorch's own, in value and in every derivative."""

from __future__ import annotations

import pytest
import torch

from fastt2i.nn.few_channel_conv import FewChannelConv2d


def both(layer: FewChannelConv2d) -> tuple[FewChannelConv2d, torch.nn.Conv2d]:
    size = layer.kernel_size[0]
    plain = torch.nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=size // 2).to(layer.weight.dtype)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("frozen", ["nothing", "x", "weight", "bias"])
def test_it_is_the_convolution(dtype: torch.dtype, layout: torch.memory_format, kernel_size: int, frozen: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 6).contiguous(memory_format=layout)
    upstream = torch.randn(2, 3, 7, 6)
    found = []
    for layer in both(FewChannelConv2d(5, 3, kernel_size)):
        ours = x.detach().clone().requires_grad_()
        leaves = {"x": ours, "weight": layer.weight, "bias": layer.bias}
        if frozen != "nothing":
            leaves.pop(frozen).requires_grad_(False)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            y = layer(ours)
        assert y.dtype == dtype
        found.append([y, *torch.autograd.grad(y, list(leaves.values()), upstream.to(dtype))])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


def test_it_differentiates_twice() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    layer = FewChannelConv2d(2, 1, 3).double()

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), tensors[1:], strict=True)), tensors[0])

    leaves = (x, *(p.detach().requires_grad_() for p in (layer.weight, layer.bias)))
    assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)


def test_an_even_kernel_has_no_middle() -> None:
    with pytest.raises(ValueError, match="kernel_size is 4; it must be odd"):
        FewChannelConv2d(5, 3, 4)
