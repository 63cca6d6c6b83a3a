"""The leaky ReLU: PyTorch's value and derivative, in both forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastt2i.ops.leaky_conv import torch_impl


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_overwrites_its_input(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, dtype=dtype)
    right = F.leaky_relu(x, 0.2)
    y = torch_impl.leaky_relu(x, 0.2)
    assert torch.equal(y, right) and y.data_ptr() == x.data_ptr()


def test_the_compilers_form_has_the_same_bits() -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 3.0])
    x, upstream = (part.flatten() for part in torch.meshgrid(special, special, indexing="ij"))
    found = []
    for run in (F.leaky_relu, torch_impl._LeakyReLU.apply):
        leaf = x.clone().requires_grad_()
        y = run(leaf, 0.2)
        found.append([y.detach(), *torch.autograd.grad(y, leaf, upstream)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0, equal_nan=True)
