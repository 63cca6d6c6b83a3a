"""DF-GAN's networks and step (Tao et al. 2022), written from the paper and its tables for comparison.

Parameters match the published code: generator 4.9 M and discriminator 3.2 M + 0.3 M at 64 px, 9.7 M and 6.6 M + 0.3 M
at 256 px.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Width of the narrowest layer, and features of noise and, in what was published, of a sentence.
WIDTH, NOISE, SENTENCE = 32, 100, 256
#: Of the matching-aware gradient penalty: weight and power.
PENALTY_WEIGHT, PENALTY_POWER = 2, 6


def _widths(size: int) -> list[int]:
    """Channels at `size` pixels, at half of it and so on down to 4."""
    return [WIDTH * min(2**level, 8) for level in range(int(math.log2(size)) - 1)]


class _Affine(nn.Module):
    """Scale and shift by the condition."""

    def __init__(self, channels: int, sentence: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(NOISE + sentence, channels), nn.ReLU(), nn.Linear(channels, channels))
            for _ in range(2)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.scale(condition)[..., None, None] * x + self.shift(condition)[..., None, None]


class _UpBlock(nn.Module):
    def __init__(self, channels: int, out: int, sentence: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.affines = nn.ModuleList(_Affine(width, sentence) for width in (channels, channels, out, out))
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2)
        h = x
        for place, affine in enumerate(self.affines):
            h = F.leaky_relu(affine(h, condition), 0.2)
            if place % 2:
                h = (self.first if place == 1 else self.second)(h)
        return self.shortcut(x) + h


class Generator(nn.Module):
    """Noise (B, 100) and sentences (B, sentence) to images (B, 3, size, size)."""

    def __init__(self, size: int, sentence: int = SENTENCE) -> None:
        super().__init__()
        widths = _widths(size)[::-1]
        self.start = nn.Linear(NOISE, 16 * widths[0])
        self.blocks = nn.ModuleList(_UpBlock(*pair, sentence) for pair in itertools.pairwise(widths))
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        x, condition = self.start(noise).view(len(noise), -1, 4, 4), torch.cat([noise, sentence], dim=1)
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.to_rgb(F.leaky_relu(x, 0.2)))


class _DownBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.LeakyReLU(0.2),
        )
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.shortcut(x), 2) + self.weight * self.residual(x)


class Discriminator(nn.Module):
    """Images (B, 3, size, size) to features (B, 256, 4, 4); `judge` says how real they are under sentences."""

    def __init__(self, size: int, sentence: int = SENTENCE) -> None:
        super().__init__()
        widths = _widths(size)
        self.from_rgb = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(_DownBlock(*pair) for pair in itertools.pairwise(widths)))
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1] + sentence, 2 * WIDTH, 3, padding=1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 1, 4, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.from_rgb(images))

    def judge(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Logits (B,)."""
        spread = sentence[..., None, None].expand(-1, -1, *features.shape[2:])
        return self.head(torch.cat([features, spread], dim=1)).flatten()


class Step:
    """One update of both, as published: hinge losses, mismatched sentences, a penalty in every step."""

    def __init__(self, size: int, device: torch.device, sentence: int = SENTENCE) -> None:
        torch.manual_seed(0)
        self.generator = Generator(size, sentence).to(device)
        self.discriminator = Discriminator(size, sentence).to(device)
        self._optimizers = [
            torch.optim.Adam(player.parameters(), lr, (0.0, 0.9))
            for player, lr in ((self.generator, 1e-4), (self.discriminator, 4e-4))
        ]

    def __call__(self, real: Tensor, sentence: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of discriminator and generator; images in [-1, 1]."""
        judge, (of_generator, of_discriminator) = self.discriminator.judge, self._optimizers
        real, sentence = real.requires_grad_(), sentence.requires_grad_()
        features = self.discriminator(real)
        matching, mismatched = judge(features, sentence), judge(features, sentence.roll(1, dims=0))
        fake = self.generator(noise, sentence)
        drawn = judge(self.discriminator(fake.detach()), sentence)
        gradients = torch.autograd.grad(matching.sum(), (real, sentence), create_graph=True)
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
        penalty = PENALTY_WEIGHT * norms.pow(PENALTY_POWER).mean()
        hinge = F.relu(1 - matching).mean() + (F.relu(1 + drawn).mean() + F.relu(1 + mismatched).mean()) / 2
        of_discriminator.zero_grad()
        (hinge + penalty).backward(inputs=list(self.discriminator.parameters()))
        of_discriminator.step()
        loss = -judge(self.discriminator(fake), sentence).mean()
        of_generator.zero_grad()
        loss.backward(inputs=list(self.generator.parameters()))
        of_generator.step()
        return hinge.detach(), loss.detach()
