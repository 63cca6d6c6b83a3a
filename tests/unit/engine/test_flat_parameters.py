"""Parameters in one vector stay what they were."""

from __future__ import annotations

import copy

import torch

from fastt2i.engine.flat_parameters import ALIGNMENT, flatten_parameters


def test_values_strides_and_gradients_stay() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 2, 1)).to(
        memory_format=torch.channels_last
    )
    module = copy.deepcopy(plain)
    flat = flatten_parameters(module)
    x = torch.randn(2, 3, 6, 6)
    for net in (plain, module):
        net(x).sum().backward()
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride() and torch.equal(ours.grad, theirs.grad)
        assert ours.storage_offset() % ALIGNMENT == 0
    flat.zero_()
    assert not any(p.any() for p in module.parameters())
    module.load_state_dict(plain.state_dict())
    assert flat.count_nonzero() == sum(p.count_nonzero() for p in plain.parameters())
