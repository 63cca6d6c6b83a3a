"""Precisions do not change each other, nor what comes after them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from fastt2i.config import LossConfig, OptimConfig
from fastt2i.engine.losses import r1_penalty
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.models.discriminator import Discriminator
from fastt2i.presets import preset
from tests.unit.engine.test_step import make, make_inputs, take

GPU, CPU = torch.device("cuda"), torch.device("cpu")


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


@pytest.mark.parametrize(
    ("name", "device", "of_penalty"),
    [("bf16", "cuda", "bf16"), ("fp16", "cuda", "fp32"), ("tf32", "cuda", "tf32"), ("bf16", "cpu", "fp32")],
)
def test_what_a_penalty_is_computed_in(name: str, device: str, of_penalty: str) -> None:
    assert Precision(name, torch.device(device)).of_penalty().name == of_penalty


def test_in_bf16_a_penalty_has_the_gradient_that_rounding_allows() -> None:
    """Against float64, of each parameter.

    In bf16 a number is off by up to 2^-8 of itself, 0.4 * 2^-8 in the root mean square. A layer rounds what comes in,
    its weights and what goes out, so the n-th one's sums, errors being independent, are off by s = 0.4 * 2^-8 *
    sqrt(3 n) of their deviation, and a share s / pi of normal ones, the angle between two such variables, has the
    wrong sign. There the leaky ReLU's slope is 0.2 and not 1, or the reverse, which changes a gradient's square by
    0.8^2 where it is (1 + 0.2^2) / 2 on average. That is the error of any gradient through such layers; that of the
    penalty goes through them twice, by the same slopes, and is off by twice as much at most.
    """
    config, random = preset("64px").model, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = Discriminator(config, 24, 24)
    wide = copy.deepcopy(module).double()
    # Of two to fourteen images torch 2.13 gets the second derivatives wrong on processors with AMX, where they are bf16
    # convolutions whose kernels are as large as the images and have so many channels: oneDNN gives other numbers.
    batch = 16
    smooth = F.interpolate(torch.randn(batch, 3, 8, 8, generator=random), size=config.image_size, mode="bicubic").tanh()
    given = [smooth, torch.randn(batch, 24, generator=random), torch.randn(batch, 5, 24, generator=random)]
    for network, precision in ((wide, Precision("fp32", CPU)), (module, Precision("bf16", CPU))):
        images, *text = [x.to(next(network.parameters()).dtype) for x in given]
        images.requires_grad_()
        player = make_player("discriminator", network, OptimConfig(), precision)
        features, sentences, _ = player.run(precision, images, *text)
        dtype = torch.float64 if network is wide else torch.float32
        features = features._replace(global_=features.global_.to(dtype), unconditional=features.unconditional.to(dtype))
        r1_penalty(features.logits(sentences.to(dtype)), images).backward()
    layers = 1 + 2 * len(module.blocks)
    signs = sum(0.4 * 2**-8 * math.sqrt(3 * n) / math.pi for n in range(1, layers + 1))
    bound = 2 * math.sqrt(signs * 0.8**2 / ((1 + 0.2**2) / 2))
    assert bound < 0.3
    convolutions = [name for name, p in wide.named_parameters() if p.grad is not None and p.ndim == 4]
    assert len(convolutions) == 1 + 3 * len(module.blocks)
    for name in convolutions:
        truth = wide.get_parameter(name).grad
        found = module.get_parameter(name).grad
        assert truth is not None and found is not None
        assert (found - truth).norm() < bound * truth.norm(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float32_is_exact_beside_other_precisions() -> None:
    a, b = torch.randn(2, 512, 512, device=GPU)
    exact = (a.double() @ b.double()).float()
    for name in ("bf16", "tf32", "fp32"):
        with Precision(name, GPU).in_force():
            error = (a @ b - exact).norm() / exact.norm()
        assert (error < 1e-6) == (name == "fp32")
