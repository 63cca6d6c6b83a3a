"""Losses are averaged on the device, and a bad one is named with its step."""

from __future__ import annotations

import pytest
import torch

from fastt2i.engine.logging.loss_log import LossLog, NonFiniteLoss


def test_means_count_each_loss_for_itself() -> None:
    log = LossLog()
    for step in range(4):
        losses = {"d": torch.tensor(float(step)), "g": torch.tensor(1.0)}
        if step % 2:
            losses["penalty"] = torch.tensor(10.0 * step)
        log.add(losses, torch.tensor(step))
    assert log.read() == {"d": 1.5, "g": 1.0, "penalty": 20.0}
    assert log.read() == {}


def test_the_first_bad_loss_is_named() -> None:
    log = LossLog()
    for step, (d, g) in enumerate([(0.0, 1.0), (0.0, float("nan")), (float("inf"), 1.0), (0.0, 1.0)], 70):
        log.add({"d": torch.tensor(d), "g": torch.tensor(g)}, torch.tensor(step))
    with pytest.raises(NonFiniteLoss) as raised:
        log.read()
    assert (raised.value.step, raised.value.name) == (71, "g")
    log.add({"d": torch.tensor(1.0)}, torch.tensor(74))
    assert log.read() == {"d": 1.0}
