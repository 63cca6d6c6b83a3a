"""Modulation: scale and shift of channels, by whichever form."""

from __future__ import annotations

import pytest
import torch

from fastt2i.ops.modulated_gated_conv.torch_impl import modulate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 24, 40])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulation(dtype: torch.dtype, channels: int, layout: torch.memory_format) -> None:
    """By rows of pixels where channels do not fill a register, and else by pixels."""
    x = torch.randn(2, channels, 5, 7, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(2, channels, dtype=dtype).requires_grad_() for _ in range(2))
    upstream, inputs = torch.randn_like(x, dtype=torch.float32), (x, scale, shift)
    ours = modulate(*inputs)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    truth = wide[1][..., None, None] * wide[0] + wide[2][..., None, None]
    ours_d, truth_d = (torch.autograd.grad(y, of, upstream.to(y.dtype)) for y, of in ((ours, inputs), (truth, wide)))
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    for found, right in zip((ours, *ours_d), (truth, *truth_d), strict=True):
        assert found.shape == right.shape and found.dtype == dtype
        assert (found.double() - right).norm() <= bound * right.norm()
    if layout == torch.channels_last:
        assert ours.is_contiguous(memory_format=layout) and ours_d[0].is_contiguous(memory_format=layout)
