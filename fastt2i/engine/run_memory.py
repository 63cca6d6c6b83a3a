"""What a run is sure to need of a CPU's memory, so that what can never fit is told before anything is made."""

from __future__ import annotations

import torch

from fastt2i.config import Config
from fastt2i.devices.free_memory import check_memory


def check_run_memory(config: Config, device: torch.device, processes: int) -> None:
    """Raise UserError where a step needs more memory than is free.

    It is a lower bound: its images, and what the generator's gated convolutions keep of them in half precision. Other
    devices refuse by themselves what does not fit.

    processes: that share a batch.
    """
    size, batch = config.model.image_size, config.train.batch_size
    if device.type == "cpu":
        images = 3 * size**2 * (1 + 4 + 4)  # real ones as they are decoded and as numbers, and drawn ones
        kept = sum(
            2 * 3 * channels * (4 << level) ** 2 for level, channels in enumerate(config.model.generator_channels)
        )
        check_memory(
            batch // processes * (images + kept // config.train.accumulate),
            f"train.batch_size is {batch}, which",
            "take a smaller one, or more parts with train.accumulate",
        )
