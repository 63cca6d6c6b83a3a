"""Where values are positive, a bit for each: what a leaky ReLU's derivative needs of them.

Signs of images (B, C, H, W) are (B, C / 8, H, W) in uint8, of eight neighbouring channels in a byte (as in StyleGAN3's
filtered leaky ReLU, Karras et al. 2021), in the memory format of the images.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import like


@triton.jit
def program_channels(WIDE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Those of a program, or bytes of channels; WIDE: offsets take more than 32 bits."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c.to(tl.int64) if WIDE else c


@triton.jit
def sign_bytes(
    p_signs, b, p, m, B: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Where the signs of a tile are, (BLOCK_P, BLOCK_C / 8), and whether they exist; m: whether positions p do."""
    byte = program_channels(WIDE, BLOCK_C // 8)[None, :]
    return p_signs + (b * B + byte * C + p * P), m & (8 * byte < CHANNELS)


@triton.jit
def pack(positive, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """(BLOCK_P, BLOCK_C) as bits, those of eight channels in a byte."""
    bits = tl.reshape(positive.to(tl.int32), (BLOCK_P, BLOCK_C // 8, 8)) << tl.arange(0, 8)[None, None, :]
    return tl.sum(bits, axis=2).to(tl.uint8)


@triton.jit
def unpack(packed, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """What `pack` was given."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (BLOCK_P, BLOCK_C)) > 0


def signs_like(x: Tensor, channels: int) -> Tensor:
    """Signs of so many channels at the pixels of x (B, ..., H, W), uninitialised, in its memory format."""
    return like(x, triton.cdiv(channels, 8), dtype=torch.uint8)
