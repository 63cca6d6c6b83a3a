"""Between the networks' images, numbers in [-1, 1], and those of people and files, 8 bits a channel."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.pictures.formats import FORMATS, check_suffix


def to_signed(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [-1, 1], channels-last in memory."""
    # Divided as integers, which gives float32: without a copy that only converts them.
    return images.permute(0, 3, 1, 2) / 127.5 - 1


def quantized(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] → uint8 (B, H, W, 3)."""
    scaled = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """As `quantized`, on the CPU."""
    return quantized(images).cpu().numpy()


def to_pillow(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] → Pillow images."""
    return [Image.fromarray(image) for image in to_uint8(images)]


def png(image: Image.Image) -> bytes:
    """The content of a PNG file; the texts in the image's `info`, such as prompt and seed, are in it."""
    buffer = io.BytesIO()
    texts = PngInfo()
    for name, value in image.info.items():
        if isinstance(name, str) and isinstance(value, str):
            texts.add_itxt(name, value.encode("utf-8", "replace").decode())
    image.save(buffer, "png", pnginfo=texts)
    return buffer.getvalue()


def encoded(image: Image.Image, suffix: str) -> bytes:
    """The content of a file that ends so. Raises UserError: in none of FORMATS, or it does not hold so many pixels."""
    check_suffix(suffix)
    if suffix == ".png":
        return png(image)
    buffer = io.BytesIO()
    try:
        image.save(buffer, FORMATS[suffix])
    except (OSError, ValueError) as error:
        raise UserError(
            f"a picture of {image.width} x {image.height} pixels is no {suffix} ({error}); name a .png, or a folder"
        ) from error
    return buffer.getvalue()


def gif(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """The content of a GIF that shows frames in turn, there and back, again and again; seconds: of one way."""
    buffer = io.BytesIO()
    there_and_back = [*frames, *frames[-2:0:-1]]
    milliseconds = max(20, round(1000 * seconds / len(frames)))  # browsers show shorter ones slower
    first, *others = (frame.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in there_and_back)
    first.save(buffer, "gif", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return buffer.getvalue()
