"""The networks whose features tell sets of images apart, by name or weights file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastt2i.metrics import efficientnet_lite, inception

EFFICIENTNET_LITE0 = "efficientnet-lite0"


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that gives features of images, and what has to be known of it to compute the same."""

    name: str
    """For people, with which KID and the like are qualified."""
    frechet_name: str
    """What the Fréchet distance of its features is called: `FID` with the one known file, else `FD-<hash>`."""
    digest: str
    """SHA-256 of its weights file."""
    resize: str
    """How images come to its size."""
    num_features: int
    network: Callable[[Tensor], Tensor]
    """Levels 0 to 255, uint8 or float32, (N, 3, H, W) -> features (N, num_features)."""
    device: torch.device

    @torch.inference_mode()
    def __call__(self, levels: Tensor) -> Tensor:
        """Features float32 (N, num_features), on the CPU, of levels (N, 3, H, W)."""
        return self.network(levels.to(self.device)).float().cpu()


def open_extractor(name: str | Path, device: torch.device) -> Extractor:
    """The extractor of a name, `efficientnet-lite0`, or of a file with the weights of Inception v3.

    Raises:
        UserError: weights are not installed, or the file holds others.
    """
    if name == EFFICIENTNET_LITE0:
        return Extractor(
            name="EfficientNet-Lite0",
            frechet_name=f"FD-{efficientnet_lite.DIGEST[:8]}",
            digest=efficientnet_lite.DIGEST,
            resize=f"antialiased bicubic to {efficientnet_lite.IMAGE_SIZE} px in float32, clamped, not rounded",
            num_features=efficientnet_lite.FEATURES,
            network=efficientnet_lite.load_efficientnet_lite0().to(device),
            device=device,
        )
    network, digest = inception.load_inception(name)
    known = digest == inception.FID_WEIGHTS
    how = {"tensorflow": "bilinear as TensorFlow 1", "torchvision": "bilinear with half-pixel centres"}[network.form]
    return Extractor(
        name="Inception v3" if known else f"Inception v3 {digest[:8]}",
        frechet_name="FID" if known else f"FD-{digest[:8]}",
        digest=digest,
        resize=f"{how} to {inception.IMAGE_SIZE} px in float32, not rounded",
        num_features=inception.FEATURES,
        network=network.to(device),
        device=device,
    )
