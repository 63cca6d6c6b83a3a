"""How noise and sentence are joined: with equal strength, whatever strength they come with."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fastt2i.config import ModelConfig
from fastt2i.models.generator import Generator
from fastt2i.models.noise import SeededNoise, make_noise, unit_rms

SENTENCE, NOISE = 20, 6
KINDS = ("concat", "additive", "conditioning_augmentation")


def noise_config(kind: str, **changes: object) -> ModelConfig:
    base = ModelConfig(noise_dim=NOISE, generator_channels=(4, 4, 4, 4), discriminator_channels=(4, 4, 4, 4))
    return dataclasses.replace(base, noise=kind, **changes)


def squares(x: Tensor) -> Tensor:
    return x.square().mean(dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_noise_and_sentence_are_equally_strong(kind: str, strength: float) -> None:
    """The text feature varies with the noise as much as it varies with the sentence, however large features are.

    The half of the sentence in `concat` has a mean square of one to rounding, the noise by its distribution; the others
    are compared by variances, over 4,000 draws.
    """
    torch.manual_seed(0)
    module = make_noise(noise_config(kind), SENTENCE)
    sentence, noise = strength * torch.randn(4000, SENTENCE), torch.randn(4000, NOISE)
    text, _ = module(sentence, noise)
    assert text.shape == (4000, module.out_dim) and module.noise_dim == NOISE
    if kind == "concat":
        torch.testing.assert_close(squares(text[:, :NOISE]), torch.ones(4000), rtol=1e-2, atol=0)
        torch.testing.assert_close(text[:, NOISE:], noise, rtol=0, atol=0)
    elif kind == "additive":
        by_sentence = module(sentence, noise[:1].expand_as(noise))[0].var(dim=0).mean()
        by_noise = module(sentence[:1].expand_as(sentence), noise)[0].var(dim=0).mean()
        assert 0.5 < by_sentence / by_noise < 2
        torch.testing.assert_close(squares(text).mean(), torch.tensor(1.0), rtol=0.1, atol=0)
    else:
        mean, _ = module(sentence, torch.zeros_like(noise))
        torch.testing.assert_close(squares(mean), torch.ones(4000), rtol=1e-2, atol=0)


def test_additive_noise_is_its_formula() -> None:
    module = make_noise(noise_config("additive", noise_sigma=0.5), SENTENCE)
    sentence, noise = torch.randn(3, SENTENCE), torch.randn(3, NOISE)
    expected = (unit_rms(module.sentence(sentence)) + 0.5 * noise) / 1.25**0.5
    torch.testing.assert_close(module(sentence, noise)[0], expected)


@pytest.mark.parametrize("balanced", [True, False])
def test_conditioning_augmentation_draws_from_its_gaussian_and_measures_its_kl(balanced: bool) -> None:
    module = make_noise(noise_config("conditioning_augmentation", balanced_noise=balanced), SENTENCE)
    sentence = torch.randn(1, SENTENCE)
    mean, log_variance = module.statistics(sentence).chunk(2, dim=1)
    mean = unit_rms(mean) if balanced else mean
    drawn, kl = module(sentence.expand(20_000, -1), torch.randn(20_000, module.noise_dim))
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), (0.5 * log_variance[0]).exp(), atol=0.05, rtol=0.05)
    gaussian = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl, expected)


def test_without_balance_they_are_joined_as_they_come() -> None:
    """As in models from before there was a balance, whose weights have the same names and shapes."""
    sentence = torch.randn(5, SENTENCE)
    concat = Generator(noise_config("concat", balanced_noise=False), SENTENCE)
    z = torch.randn(5, concat.noise_dim)
    text, kl = concat.noise(sentence, z)
    assert concat.noise_dim == NOISE and kl is None
    torch.testing.assert_close(text, torch.cat([sentence, z], dim=1))
    assert not [name for name in concat.state_dict() if name.startswith("noise")]
    additive = Generator(noise_config("additive", noise_sigma=0.5, balanced_noise=False), SENTENCE)
    z = torch.randn(5, additive.noise_dim)
    torch.testing.assert_close(additive.noise(sentence, z)[0], sentence + 0.5 * z)
    augmented = Generator(noise_config("conditioning_augmentation", balanced_noise=False), SENTENCE)
    assert augmented.noise_dim == SENTENCE and augmented.noise.statistics.weight.shape == (2 * SENTENCE, SENTENCE)


def test_a_row_of_a_seeds_noise_depends_on_its_number_alone() -> None:
    random = torch.Generator().manual_seed(3)
    whole = torch.stack([torch.randn(NOISE, generator=random) for _ in range(9)]) * 0.5
    noise = SeededNoise(3, NOISE, 0.5)
    parts = [noise.rows(numbers) for numbers in (range(2), range(2, 3), range(6, 9))]
    assert all(torch.equal(part, rows) for part, rows in zip(parts, (whole[:2], whole[2:3], whole[6:]), strict=True))
    with pytest.raises(ValueError, match="must come in order"):
        noise.rows(range(8, 10))
