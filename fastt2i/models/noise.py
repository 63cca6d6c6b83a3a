"""How noise meets the sentence feature: three ways to make the text feature that modulates the generator.

The sentence is projected to the noise's size and brought to the noise's root mean square, one, before they are joined.
Joined as they come, 32 entries of noise beside 384 of the sentence are 8 % of what the generator sees, and all images
of a caption were the same one. XMC-GAN (Zhang et al. 2021) projects the sentence to the noise's size, too.
The noise is left as it is drawn, so that it can be truncated.

Each kind takes whitened sentences (B, sentence_dim) and standard normal noise (B, noise_dim), and returns text features
(B, out_dim) and the KL term of the noise, a scalar, or None. With `balanced=False` they do what they did before there
was a balance, for the models that were trained then.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastt2i.config import ModelConfig


class ConcatNoise(nn.Module):
    """[P s, z], both of `noise_dim`, P s of root mean square one."""

    def __init__(self, sentence_dim: int, noise_dim: int, *, balanced: bool = True) -> None:
        super().__init__()
        self.noise_dim, self.balanced = noise_dim, balanced
        self.out_dim = noise_dim + (noise_dim if balanced else sentence_dim)
        self.sentence = nn.Linear(sentence_dim, noise_dim) if balanced else nn.Identity()

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, None]:
        text = unit_rms(self.sentence(sentence)) if self.balanced else sentence
        return torch.cat([text, noise], dim=1), None


class AdditiveNoise(nn.Module):
    """(P s + sigma z) / sqrt(1 + sigma^2), both of `noise_dim`, P s of root mean square one."""

    def __init__(self, sentence_dim: int, noise_dim: int, sigma: float, *, balanced: bool = True) -> None:
        super().__init__()
        self.noise_dim = self.out_dim = noise_dim if balanced else sentence_dim
        self.sigma, self.balanced = sigma, balanced
        self.sentence = nn.Linear(sentence_dim, noise_dim) if balanced else nn.Identity()

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, None]:
        if not self.balanced:
            return sentence + self.sigma * noise, None
        text = unit_rms(self.sentence(sentence)) + self.sigma * noise
        return text / math.sqrt(1 + self.sigma**2), None


class ConditioningAugmentation(nn.Module):
    """N(mu(s), sigma(s)) of `noise_dim`, with its KL divergence from N(0, I) (StackGAN, Zhang et al. 2017, eq. 2).

    mu has a root mean square of one; the divergence keeps sigma near one, where noise and sentence are equally strong.
    """

    def __init__(self, sentence_dim: int, noise_dim: int, *, balanced: bool = True) -> None:
        super().__init__()
        self.noise_dim = self.out_dim = noise_dim if balanced else sentence_dim
        self.balanced = balanced
        self.statistics = nn.Linear(sentence_dim, 2 * self.noise_dim)

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.statistics(sentence).float().chunk(2, dim=1)
        if self.balanced:
            mean = unit_rms(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return mean + (0.5 * log_variance).exp() * noise, kl


Noise = ConcatNoise | AdditiveNoise | ConditioningAugmentation


def make_noise(config: ModelConfig, sentence_dim: int) -> Noise:
    """The kind of noise that `config.noise` names."""
    balanced = config.balanced_noise
    if config.noise == "concat":
        return ConcatNoise(sentence_dim, config.noise_dim, balanced=balanced)
    if config.noise == "additive":
        return AdditiveNoise(sentence_dim, config.noise_dim, config.noise_sigma, balanced=balanced)
    return ConditioningAugmentation(sentence_dim, config.noise_dim, balanced=balanced)


def unit_rms(x: Tensor) -> Tensor:
    """x (B, n) with each row divided by its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def slerp(a: Tensor, b: Tensor, way: Tensor) -> Tensor:
    """Points (F, d) on the great circle from a (d,) to b (d,) at shares `way` (F,); lengths change evenly."""
    length = torch.lerp(a.norm(), b.norm(), way)[:, None]
    angle = torch.acos((torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1))
    if angle.sin() < 1e-4:  # the same direction, or opposite ones, between which no great circle is the shortest
        return torch.lerp(a, b, way[:, None])
    share = way[:, None]
    direction = ((1 - share) * angle).sin() * a / a.norm() + (share * angle).sin() * b / b.norm()
    return length * direction / angle.sin()


class SeededNoise:
    """Standard normal noise times a factor, drawn on the CPU row by row: a row depends on its number alone.

    Args:
        seed: of the noise.
        noise_dim: numbers of a row.
        factor: of the noise.
    """

    def __init__(self, seed: int, noise_dim: int, factor: float) -> None:
        self._random = torch.Generator("cpu").manual_seed(seed)
        self._noise_dim, self._factor = noise_dim, factor
        self._next = 0

    def rows(self, numbers: range) -> Tensor:
        """The rows (n, noise_dim) of these numbers, which come after all that were asked for before.

        Raises:
            ValueError: they do not.
        """
        if numbers.start < self._next:
            raise ValueError(f"rows {numbers} are asked for after row {self._next - 1}; they must come in order")
        for _ in range(self._next, numbers.start):
            self._row()
        self._next = numbers.stop
        return torch.stack([self._row() for _ in numbers]) * self._factor

    def _row(self) -> Tensor:
        return torch.randn(self._noise_dim, generator=self._random, dtype=torch.float32, device="cpu")
