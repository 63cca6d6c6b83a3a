"""One training step: what it computes, how many passes it takes, and that it is a pure function."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from fastt2i.config import LossConfig, ModelConfig, OptimConfig
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.ema import Ema
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.errors import UserError
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.text.features import TextFeatures

SENTENCE, BATCH, WORDS = 12, 6, 4
MODEL = ModelConfig(
    generator_channels=(6, 5, 4, 4), discriminator_channels=(4, 5, 6, 7), region_dim=9, global_dim=11, noise_dim=3
)
CPU = torch.device("cpu")


def make(
    loss: LossConfig,
    precision: str = "fp32",
    device: torch.device = CPU,
    real_distance: float | None = None,
    **model: object,
) -> TrainStep:
    config = dataclasses.replace(MODEL, **model)
    torch.manual_seed(1)
    arithmetic = Precision(precision, device)
    networks = Generator(config, SENTENCE).to(device), Discriminator(config, SENTENCE, SENTENCE).to(device)
    generator = make_player("generator", networks[0], OptimConfig(), arithmetic)
    discriminator = make_player("discriminator", networks[1], OptimConfig(), arithmetic)
    ema = Ema(generator.module, 0.9)
    return TrainStep(loss, generator, discriminator, ema, arithmetic, real_distance=real_distance)


def make_inputs(step: TrainStep, seed: int = 0) -> StepInputs:
    random = torch.Generator().manual_seed(seed)
    captions = torch.arange(BATCH)
    captions[4] = captions[1]
    mask = torch.arange(WORDS) < torch.tensor([4, 1, 3, 0, 2, 4])[:, None]
    return StepInputs(
        images=torch.randint(0, 256, (BATCH, 32, 32, 3), generator=random, dtype=torch.uint8),
        text=TextFeatures(
            torch.randn(BATCH, SENTENCE, generator=random),
            torch.randn(BATCH, WORDS, SENTENCE, generator=random) * mask[..., None],
            mask,
        ),
        mismatched_sentence=torch.randn(BATCH, SENTENCE, generator=random),
        caption_ids=captions,
        mismatched_ids=captions.roll(-1),
        class_ids=None,
        noise=torch.randn(BATCH, step.generator.module.noise_dim, generator=random),
        augmentation=torch.rand(3, BATCH, draws_per_image(step.config.augment), generator=random),
    )


def take(step: TrainStep, inputs: StepInputs, number: int) -> dict[str, torch.Tensor]:
    """Run step number `number`."""
    return step(inputs, torch.tensor(step.ema.weight(number)), step.has_penalty(number))


def weights(step: TrainStep) -> list[torch.Tensor]:
    modules = (step.generator.module, step.discriminator.module, step.ema.module)
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("noise", ["concat", "additive", "conditioning_augmentation"])
@pytest.mark.parametrize("adversarial", ["hinge", "nonsaturating"])
@pytest.mark.parametrize("penalty", ["r1", "ma_gp", "none"])
def test_every_loss_reaches_every_weight(noise: str, adversarial: str, penalty: str) -> None:
    step = make(LossConfig(adversarial=adversarial, penalty=penalty, augment=("translation", "cutout")), noise=noise)
    before = weights(step)
    losses = take(step, make_inputs(step), 0)
    assert ("d_penalty" in losses) == (penalty != "none")
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(step), strict=True))


def test_the_penalty_is_lazy() -> None:
    step = make(LossConfig(penalty_every=4))
    seen = ["d_penalty" in take(step, make_inputs(step, seed=n), n) for n in range(9)]
    assert seen == [n % 4 == 0 for n in range(9)]


def test_a_step_takes_one_generator_pass_and_two_trunk_passes() -> None:
    """The first trunk pass has real and fake images concatenated, and no pass is spent on mismatched pairs; regions are
    those of the images that captions are compared with."""
    step = make(LossConfig(penalty="none"))
    generated, seen, compared = [], [], []
    step.generator.module.register_forward_hook(lambda _m, inputs, _o: generated.append(len(inputs[0])))
    step.discriminator.module.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    step.discriminator.module.regions.register_forward_hook(lambda _m, inputs, _o: compared.append(len(inputs[0])))
    take(step, make_inputs(step), 1)
    assert generated == [BATCH] and seen == [2 * BATCH, BATCH] and compared == [BATCH, BATCH]


def test_mode_seeking_draws_every_other_caption_again_in_the_same_pass() -> None:
    """The discriminator does not see what is drawn again, and the losses on it are those of a step without."""
    step, without = (make(LossConfig(penalty="none"), real_distance=distance) for distance in (0.5, None))
    generated, seen = [], []
    step.generator.module.register_forward_hook(lambda _m, inputs, _o: generated.append(inputs))
    step.discriminator.module.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    inputs = make_inputs(step)
    losses, others = take(step, inputs, 1), take(without, inputs, 1)
    ((sentence, noise),) = generated
    assert len(sentence) == BATCH + BATCH // 2 and seen == [2 * BATCH, BATCH]
    assert torch.equal(sentence[BATCH:], inputs.text.sentence[::2]) and torch.equal(
        noise[BATCH:], inputs.noise[::2].flip(1)
    )
    assert losses.keys() - others.keys() == {"g_mode_seeking"}
    for name, value in others.items():
        torch.testing.assert_close(losses[name], value)


def test_mode_seeking_pulls_images_of_a_caption_apart() -> None:
    """After some steps on one batch they differ by more than without; with weight 0 nothing is drawn again."""
    differences = {}
    for weight in (0.0, 5.0):
        step = make(LossConfig(penalty="none", mode_seeking=weight), real_distance=1.0)
        inputs = make_inputs(step)
        for number in range(1, 9):
            losses = take(step, inputs, number)
        assert ("g_mode_seeking" in losses) == (weight > 0)
        sentence = inputs.text.sentence[:1].expand(BATCH, -1)
        images = step.generator.module(sentence, inputs.noise).images.detach()
        differences[weight] = images.std(dim=0).mean().item()
    assert differences[5.0] > 1.1 * differences[0.0]


def test_mismatched_logits_are_real_images_under_other_captions() -> None:
    """With all weight on mismatched pairs, the discriminator's loss depends on the other captions, not on fakes."""
    config = LossConfig(mismatched=1.0, penalty="none")
    step = make(config)
    inputs = make_inputs(step)

    def loss(changed: StepInputs) -> float:
        return take(copy.deepcopy(step), changed, 1)["d_adversarial"].item()

    assert loss(inputs._replace(noise=torch.zeros_like(inputs.noise))) == pytest.approx(loss(inputs), rel=1e-6)
    assert loss(inputs._replace(mismatched_sentence=inputs.mismatched_sentence.flip(0))) != loss(inputs)


def test_equal_captions_are_no_negatives() -> None:
    """Captions 1 and 4 are equal: without each other as negatives, the matching losses must be lower."""
    step = make(LossConfig(penalty="none"))
    inputs = make_inputs(step)
    same = inputs.text.sentence.clone()
    same[4] = same[1]
    inputs = inputs._replace(text=inputs.text._replace(sentence=same))
    apart = inputs._replace(caption_ids=torch.arange(BATCH))
    together, alone = (take(copy.deepcopy(step), i, 1) for i in (inputs, apart))
    for name in ("d_sentence", "d_region"):
        assert together[name] < alone[name]


def test_images_of_one_class_are_no_negatives() -> None:
    """Excluding pairs by their class is what excluding them by their caption would be; other classes change nothing."""
    step = make(LossConfig(penalty="none"))
    inputs = make_inputs(step)
    plain = inputs._replace(caption_ids=torch.arange(BATCH), mismatched_ids=torch.arange(BATCH).roll(-1))
    classes = torch.tensor([7, 3, 5, 3, 9, 3])

    def matching(changed: StepInputs) -> list[float]:
        losses = take(copy.deepcopy(step), changed, 1)
        return [losses[name].item() for name in ("d_sentence", "d_region", "g_sentence", "g_region")]

    excluded = matching(plain._replace(class_ids=classes))
    assert excluded == matching(plain._replace(caption_ids=classes, mismatched_ids=classes + 10))
    assert all(a < b for a, b in zip(excluded, matching(plain), strict=True))
    assert matching(plain._replace(class_ids=torch.arange(BATCH))) == matching(plain)


def test_a_step_is_a_pure_function_of_state_and_inputs() -> None:
    first, second = (make(LossConfig(augment=("translation", "color")), noise="additive") for _ in range(2))
    for number in range(3):
        take(first, make_inputs(first, number), number)
        torch.rand(100)  # the global generator plays no part
        take(second, make_inputs(second, number), number)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_stay_near_fp32(precision: str) -> None:
    exact, half = make(LossConfig()), make(LossConfig(), precision)
    ours, theirs = take(exact, make_inputs(exact), 0), take(half, make_inputs(half), 0)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0.05, atol=0.05)


def test_tf32_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="tf32, which only a GPU has"):
        Precision("tf32", CPU)


def test_a_step_that_fails_leaves_the_players_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a step cannot be captured in a CUDA graph, and is taken as it is then."""
    step = make(LossConfig())
    inputs = make_inputs(step)

    def fail(*_: object) -> None:
        raise RuntimeError("not this time")

    with monkeypatch.context() as patched:
        patched.setattr(step, "_generator_losses", fail)
        with pytest.raises(RuntimeError, match="not this time"):
            step(inputs, torch.tensor(0.1), with_penalty=False)
    assert all(parameter.requires_grad for parameter in step.discriminator.module.parameters())
    step(inputs, torch.tensor(0.1), with_penalty=True)


def test_forward_and_backward_alone_change_nothing() -> None:
    first, second = (make(LossConfig()) for _ in range(2))
    before = copy.deepcopy(weights(first))
    first.forward_backward_only(make_inputs(first))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(first), strict=True))
    for step in (first, second):
        take(step, make_inputs(step), 0)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
