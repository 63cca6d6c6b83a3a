"""A step in parts is the step with the whole batch, in less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastt2i.config import LossConfig
from fastt2i.engine.execution.gradient_cache import AccumulatedStep
from fastt2i.engine.step import StepInputs, TrainStep
from tests.unit.engine.test_step import BATCH, make, make_inputs, take


def both(loss: LossConfig, parts: int, precision: str = "fp32", **model: object) -> tuple[TrainStep, AccumulatedStep]:
    """The same networks twice, to be stepped with the whole batch and in parts."""
    return make(loss, precision, **model), AccumulatedStep(make(loss, precision, **model), parts)


def gradients(module: nn.Module) -> Tensor:
    """Those that the last step left, as one vector in float64."""
    return torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None])


def vector(module: nn.Module) -> Tensor:
    """All weights, in float64."""
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def assert_near(ours: Tensor, truth: Tensor, bound: float = 1e-5) -> None:
    assert ours.shape == truth.shape and truth.norm() > 0
    assert (ours - truth).norm() <= bound * truth.norm()


def assert_losses_near(ours: dict[str, Tensor], truth: dict[str, Tensor], bound: float = 1e-5) -> None:
    """A loss near 0 is a difference of parts of about 1."""
    assert ours.keys() == truth.keys()
    for name, true in truth.items():
        assert (ours[name] - true).abs() <= bound * true.abs().clamp(min=1), name


@pytest.mark.parametrize("parts", [2, 3, BATCH])
@pytest.mark.parametrize("penalty", ["r1", "ma_gp", "none"])
@pytest.mark.parametrize("noise", ["concat", "conditioning_augmentation"])
def test_losses_gradients_and_average_are_those_of_the_whole_batch(parts: int, penalty: str, noise: str) -> None:
    """Captions 1 and 4 are equal and fall into different parts; one caption has no keyword.

    With the hinge loss the gradient of the last bias sums to 0 at first, and Adam steps by the sign of its rounding.
    """
    config = LossConfig(
        adversarial="nonsaturating", penalty=penalty, penalty_every=2, augment=("translation", "cutout", "color")
    )
    whole, accumulated = both(config, parts, noise=noise)
    for number in range(2):
        inputs = make_inputs(whole, number)._replace(class_ids=torch.tensor([0, 1, 2, 3, 4, 0]))
        assert_losses_near(take(accumulated, inputs, number), take(whole, inputs, number))
        for name in ("generator", "discriminator"):
            ours, truth = (getattr(step, name).module for step in (accumulated, whole))
            assert_near(gradients(ours), gradients(truth))
            assert_near(vector(ours), vector(truth))
        assert_near(vector(accumulated.ema.module), vector(whole.ema.module))


def test_a_part_alone_would_have_other_losses() -> None:
    """What the negatives of the other parts are worth, over four batches."""
    alone = together = 0.0
    for seed in range(4):
        whole, accumulated = both(LossConfig(), 2)
        inputs = make_inputs(whole, seed)
        alone += take(make(LossConfig()), next(accumulated._split(inputs)), 1)["d_sentence"].item()
        together += take(accumulated, inputs, 1)["d_sentence"].item()
    assert alone < 0.8 * together


@pytest.mark.parametrize("parts", [2, 3, BATCH])
def test_mode_seeking_has_the_same_pairs_in_parts(parts: int) -> None:
    """Of parts of three images one has two pairs, and of parts of one image every other has none."""
    whole, accumulated = both(LossConfig(adversarial="nonsaturating", mode_seeking=1.0), parts, real_distance=0.5)
    for number in range(2):
        inputs = make_inputs(whole, number)
        losses, truth = take(accumulated, inputs, number), take(whole, inputs, number)
        assert truth["g_mode_seeking"] > 0
        assert_losses_near(losses, truth)
        assert_near(gradients(accumulated.generator.module), gradients(whole.generator.module))


def test_half_precision_scales_the_gradients_of_parts() -> None:
    whole, accumulated = both(LossConfig(), 3, "fp16")
    for step in (whole, accumulated):
        step.discriminator.scaler.load_state_dict(step.discriminator.scaler.state_dict() | {"scale": 64.0})
    inputs = make_inputs(whole)
    assert_losses_near(take(accumulated, inputs, 0), take(whole, inputs, 0), bound=1e-2)
    assert_near(gradients(accumulated.discriminator.module), gradients(whole.discriminator.module), bound=1e-2)


class _Saved:
    """A tensor that a graph keeps for its backward pass."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        _Saved.now += tensor.nbytes
        _Saved.most = max(_Saved.most, _Saved.now)

    def __del__(self) -> None:
        _Saved.now -= self.tensor.nbytes


def most_saved(run: Callable[[], object]) -> int:
    """Bytes that graphs keep at one moment at most, weights left out."""
    _Saved.now = _Saved.most = 0

    def pack(tensor: Tensor) -> Tensor | _Saved:
        return tensor if isinstance(tensor, nn.Parameter) else _Saved(tensor)

    def unpack(saved: Tensor | _Saved) -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        run()
    return _Saved.most


def doubled(inputs: StepInputs) -> StepInputs:
    """Twice as many of everything."""

    def double(part: object) -> object:
        if isinstance(part, tuple):
            return type(part)(*map(double, part))
        return torch.cat([part, part]) if isinstance(part, Tensor) else part

    rows = inputs._replace(augmentation=inputs.augmentation.transpose(0, 1))
    return StepInputs(*map(double, rows))._replace(augmentation=torch.cat([inputs.augmentation] * 2, dim=1))


@pytest.mark.parametrize("number", [0, 1])
def test_four_parts_need_less_than_half_of_the_memory(number: int) -> None:
    """With the penalty and without."""
    whole, accumulated = both(LossConfig(), 4)
    inputs = doubled(doubled(make_inputs(whole)))
    most = {step: most_saved(lambda step=step: take(step, inputs, number)) for step in (whole, accumulated)}
    assert 0 < most[accumulated] < most[whole] / 2
