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
    # The embedded shapes bear high rates; at 8e-4 and 1e-3 training broke down.
    rates = OptimConfig(generator_lr=4e-4, discriminator_lr=6e-4)
    return Config(optim=rates, train=TrainConfig(steps=2200))


def _natural(image_size: int, generator: tuple[int, ...], discriminator: tuple[int, ...], batch_size: int) -> Config:
    return Config(
        data=DataConfig(workers=4),
        model=ModelConfig(
            image_size=image_size,
            noise_dim=100,
            generator_channels=generator,
            discriminator_channels=discriminator,
            region_dim=256,
            region_grid=16 if image_size == 256 else 8,
        ),
        # At 64 px, a weight of 0.05 left the game to the discriminator and one of 0.5 did not.
        loss=LossConfig(augment=("translation",), gamma_attention=5.0, gamma_matching=50.0, penalty_weight=0.5),
        optim=OptimConfig(ema=0.999),
        train=TrainConfig(steps=100_000, batch_size=batch_size),
        checkpoint=CheckpointConfig(every=2000, keep=3),
        log=LogConfig(every=50, samples_every=2000),
    )


#: What `--preset` chooses from: the demo learns the embedded shapes in minutes on two CPU cores; the others are sized
#: for photographs, and have not been trained to their end yet.
PRESETS: dict[str, Callable[[], Config]] = {
    "demo": _demo,
    "64px": lambda: _natural(64, (256, 128, 64, 48, 32), (16, 32, 64, 128, 256), 64),
    "128px": lambda: _natural(128, (256, 256, 192, 128, 64, 32), (32, 64, 128, 192, 256, 256), 64),
    "256px": lambda: _natural(256, (256, 256, 192, 128, 96, 48, 24), (24, 48, 96, 160, 224, 256, 256), 32),
}


def preset(name: str) -> Config:
    """A fresh copy of the preset called `name`."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
