"""Precisions do not change each other, nor what comes after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fastt2i.config import LossConfig
from fastt2i.engine.precision import Precision
from tests.unit.engine.test_step import make, make_inputs, take

GPU = torch.device("cuda")


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("outside", [("highest", False), ("high", True), ("medium", True)])
def test_tf32_is_as_the_precision_has_it_and_then_as_before(outside: tuple[str, bool]) -> None:
    """The settings can be made without a GPU, on which alone they act."""
    before = flags()
    try:
        torch.set_float32_matmul_precision(outside[0])
        torch.backends.cudnn.allow_tf32 = outside[1]
        exact, tf32, half = (Precision(name, GPU) for name in ("fp32", "tf32", "bf16"))
        assert flags() == outside
        with half.in_force():
            assert flags() == ("high", True)
            with exact.in_force():
                assert flags() == ("highest", False)
            assert flags() == ("high", True)
        with pytest.raises(ZeroDivisionError), tf32.in_force():
            assert flags() == ("high", True)
            raise ZeroDivisionError
        assert flags() == outside
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("dry", [False, True])
def test_a_whole_step_has_its_precision(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward passes of both networks, and the penalty."""
    open_, seen = [False], []

    @contextmanager
    def in_force() -> Iterator[None]:
        open_[0] = True
        yield
        open_[0] = False

    step = make(LossConfig())
    monkeypatch.setattr(step.precision, "in_force", in_force)
    for player in (step.generator, step.discriminator):
        player.module.register_forward_hook(lambda *_: seen.append(open_[0]))
        next(player.module.parameters()).register_hook(lambda _: seen.append(open_[0]))
    if dry:
        step.forward_backward_only(make_inputs(step))
    else:
        take(step, make_inputs(step), 0)
    assert len(seen) == 6 and all(seen) and not open_[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float32_is_exact_beside_other_precisions() -> None:
    a, b = torch.randn(2, 512, 512, device=GPU)
    exact = (a.double() @ b.double()).float()
    for name in ("bf16", "tf32", "fp32"):
        with Precision(name, GPU).in_force():
            error = (a @ b - exact).norm() / exact.norm()
        assert (error < 1e-6) == (name == "fp32")
