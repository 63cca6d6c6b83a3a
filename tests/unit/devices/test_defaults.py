"""Programs compute the same in a host program that has set torch otherwise."""

from __future__ import annotations

import torch

from fastt2i.devices.defaults import torch_defaults


def test_what_a_host_program_has_set_is_put_aside_and_back() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            with torch_defaults():
                made = torch.ones(2, requires_grad=True)
                assert (made.dtype, made.device.type) == (torch.float32, "cpu")
                (made * 2).sum().backward()
                assert made.grad is not None
            made = torch.ones(2)
            assert (made.dtype, made.device.type, made.is_inference()) == (torch.float64, "meta", True)
    finally:
        torch.set_default_dtype(before)
