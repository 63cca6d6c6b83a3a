"""Between the networks' images, numbers in [-1, 1], and those of people and files, 8 bits a channel."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_signed(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [-1, 1], channels-last in memory."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] → uint8 (B, H, W, 3)."""
    scaled = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def to_pillow(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] → Pillow images."""
    return [Image.fromarray(image) for image in to_uint8(images)]


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
