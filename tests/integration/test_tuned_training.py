"""Which calls are timed in a run with `engine.tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastt2i import train
from fastt2i.engine import trainer
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.ops.dispatch import registry


def test_operators_are_timed_in_training_steps_alone(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never while samples and scores are drawn, whose calls are of other sizes and too few to be worth it."""
    during = [""]
    timed: list[str] = []

    def measure(device: torch.device, key: str, *_: object) -> None:
        timed.append(f"{during[-1]} {key}")

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: object, **options: object) -> Any:
            during.append(name)
            try:
                return function(*arguments, **options)
            finally:
                during.pop()

        return run

    monkeypatch.setattr(registry, "measure", measure)
    monkeypatch.setattr(trainer, "log_samples", within("samples:", trainer.log_samples))
    monkeypatch.setattr(StepRunner, "__call__", within("step:", StepRunner.__call__))
    assert train.main([*tiny, "--train.steps", "2", "--engine.tune", "on", "--out", str(tmp_path)]) == 0
    assert timed and all(line.startswith("step: ") for line in timed)
