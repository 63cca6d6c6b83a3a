"""The moving average of the weights."""

from __future__ import annotations

import torch

from fastt2i.engine.ema import Ema


def test_the_average_follows_its_formula() -> None:
    source = torch.nn.Linear(3, 2)
    ema = Ema(source, 0.9)
    expected = source.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            source.weight.copy_(torch.randn(2, 3))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * source.weight.detach()
        ema.update(torch.tensor(ema.weight(step)))
    torch.testing.assert_close(ema.module.weight, expected)
    assert not any(p.requires_grad for p in ema.module.parameters())
