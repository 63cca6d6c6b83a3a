"""Settings to start from: what `--preset` chooses."""

from __future__ import annotations

from collections.abc import Callable

from fastt2i.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from fastt2i.errors import UserError


def _demo() -> Config:
    # The embedded shapes bear high rates; at 8e-4 and 1e-3 training broke down. In batches of 16 they are learned from
    # two thirds of the images that batches of 32 take: docs/recipe.md.
    rates = OptimConfig(generator_lr=4e-4, discriminator_lr=6e-4)
    return Config(optim=rates, train=TrainConfig(steps=3400, batch_size=16), log=LogConfig(samples_every=500))


def _small() -> Config:
    # Trained as it is, on emoji: docs/real-images.md has what came of it, docs/recipe.md what else was tried.
    return Config(
        data=DataConfig(workers=4),
        model=ModelConfig(
            image_size=64, generator_channels=(128, 128, 64, 32, 24), discriminator_channels=(16, 32, 64, 128, 128)
        ),
        loss=LossConfig(adversarial="nonsaturating", penalty_weight=1.0),
        optim=OptimConfig(generator_lr=4e-4, discriminator_lr=6e-4, schedule="cosine", warmup=100, ema=0.998),
        train=TrainConfig(steps=12_000, batch_size=16),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=50, samples_every=1000),
    )


def _large(image_size: int, generator: tuple[int, ...], discriminator: tuple[int, ...], batch_size: int) -> Config:
    return Config(
        data=DataConfig(workers=4),
        model=ModelConfig(
            image_size=image_size,
            generator_channels=generator,
            discriminator_channels=discriminator,
            region_dim=256,
            region_grid=16 if image_size == 256 else 8,
        ),
        # The adversarial loss and its penalty are those that 64 px were trained with.
        loss=LossConfig(adversarial="nonsaturating", penalty_weight=1.0, gamma_attention=5.0, gamma_matching=50.0),
        optim=OptimConfig(warmup=100, ema=0.999),
        train=TrainConfig(steps=100_000, batch_size=batch_size),
        checkpoint=CheckpointConfig(every=2000, keep=3),
        log=LogConfig(every=50, samples_every=2000),
    )


#: What `--preset` chooses from: the demo learns the embedded shapes in minutes on two CPU cores, and 64px pictures of
#: many things in an hour; the others are sized for photographs, and have not been trained to their end yet.
PRESETS: dict[str, Callable[[], Config]] = {
    "demo": _demo,
    "64px": _small,
    "128px": lambda: _large(128, (256, 256, 192, 128, 64, 32), (32, 64, 128, 192, 256, 256), 64),
    "256px": lambda: _large(256, (256, 256, 192, 128, 96, 48, 24), (24, 48, 96, 160, 224, 256, 256), 32),
}


def preset(name: str) -> Config:
    """A fresh copy of the preset called `name`."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
