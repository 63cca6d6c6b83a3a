"""What a step reads by its number: rates and the weight in the average, on the device."""

from __future__ import annotations

import itertools
import math

import torch

from fastt2i.config import OptimConfig
from fastt2i.engine.ema import Ema
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.engine.schedule import StepSchedule, lr_factor


def test_rates_warm_up_and_go_down() -> None:
    config = OptimConfig(warmup=4, schedule="cosine")
    shares = [lr_factor(config, step, 14) for step in range(14)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[9] == 0.5 and shares[13] == 0.5 * (1 + math.cos(0.9 * math.pi))
    assert all(a > b for a, b in itertools.pairwise(shares[4:]))
    assert {lr_factor(OptimConfig(), step, 14) for step in range(14)} == {1.0}


def test_the_current_rate_reaches_the_optimizer() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    player = make_player(
        "generator", module, OptimConfig(generator_lr=0.5, warmup=5), Precision("fp32", torch.device("cpu"))
    )
    schedule = StepSchedule(OptimConfig(generator_lr=0.5, warmup=5), 10, [player], ema := Ema(module, 0.9))
    moved = []
    for step in (0, 1, 7):
        schedule.set(step)
        before = module.weight.item()
        player.zero_grad()
        player.backward(module.weight.sum())  # Adam moves by its rate down a constant gradient
        player.step()
        moved.append(before - module.weight.item())
    torch.testing.assert_close(moved, [0.1, 0.2, 0.5], rtol=1e-4, atol=0.0)
    assert schedule.step.item() == 7
    assert schedule.ema_weight.item() == torch.tensor(ema.weight(7)).item()
