"""The definition of every operator in readable PyTorch, differentiable any number of times.

Shapes are written as suffixes: B batch, C channels, H and W height and width, I images, J captions, T keywords,
R regions, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": F.elu, "silu": F.silu, "tanh": torch.tanh}
ACTIVATIONS = ("identity", "leaky_relu", *POINTWISE)
VARIANTS = ("xmc", "damsm")

#: XMC-GAN's floor of a squared norm, and AttnGAN's of the product of two norms.
NORM_FLOOR = 1e-12
COSINE_FLOOR = 1e-8


def activate(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The activation of the feature half."""
    if activation == "identity":
        return x
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    return POINTWISE[activation](x)


def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, *) = [f, g]."""
    feature, gate = pre.chunk(2, dim=1)
    return activate(feature, activation, negative_slope) * torch.sigmoid(gate)


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """The gate of one convolution to 2C channels."""
    return gate(F.conv2d(x, weight, bias, stride, padding, dilation, groups), activation, negative_slope)


def upsample_gated_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """The gated convolution of the nearest-neighbour 2x upsampling."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return gated_conv2d(upsampled, weight, bias, 1, 1, 1, 1, activation, negative_slope)


def l2_normalize(x: Tensor) -> Tensor:
    """x / |x| along the last dimension; tiny vectors go to zero instead of to NaN."""
    return x * squared_norm(x).clamp(min=NORM_FLOOR).rsqrt()


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 along the last dimension, which stays."""
    return finite_or_nan(x.square().sum(dim=-1, keepdim=True))


def finite_or_nan(square: Tensor) -> Tensor:
    """NaN in the place of infinity: what is divided by that would be 0, as if it were a result."""
    return square.masked_fill(square == torch.inf, torch.nan)


def region_keyword_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T)."""
    v_IRD, e_JTD = _compared(regions, keywords, mask, variant)
    similarity_IJTR = torch.einsum("ird,jtd->ijtr", v_IRD, e_JTD)
    attention_IJTR = _attend(similarity_IJTR, mask, variant, gamma_attention)
    context_IJTD = torch.einsum("ijtr,ird->ijtd", attention_IJTR, v_IRD)
    # A context vector may be zero, and the norm of a zero vector has no gradient: floor the square, far below where the
    # published floor of the product takes hold.
    tiny = torch.finfo(context_IJTD.dtype).tiny
    context_norm = squared_norm(context_IJTD).clamp(min=tiny).sqrt().squeeze(3)
    keyword_norm = squared_norm(e_JTD).clamp(min=tiny).sqrt().squeeze(2)
    cosine_IJT = (context_IJTD * e_JTD).sum(dim=3) / (context_norm * keyword_norm).clamp(min=COSINE_FLOOR)
    return pool(gamma_pooling * cosine_IJT, mask) / (gamma_pooling if variant == "xmc" else 1.0)


def region_keyword_attention(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float
) -> Tensor:
    """Attention (B, T, R) of caption b's keywords over image b's regions; zero where no keyword is."""
    v_BRD, e_BTD = _compared(regions, keywords, mask, variant)
    attention_BTR = _attend(e_BTD @ v_BRD.mT, mask, variant, gamma_attention)
    return attention_BTR.masked_fill(~mask[:, :, None], 0.0)


def _compared(regions: Tensor, keywords: Tensor, mask: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Features as their dot products are taken."""
    # Zeros where no keyword is, not only for its score: what stands there may be NaN, and 0 * NaN in a backward is NaN.
    v_IRD, e_JTD = accumulating(regions), accumulating(keywords).masked_fill(~mask[:, :, None], 0.0)
    return (l2_normalize(v_IRD), l2_normalize(e_JTD)) if variant == "xmc" else (v_IRD, e_JTD)


def _attend(similarity: Tensor, mask: Tensor, variant: str, gamma: float) -> Tensor:
    """Attention over regions of similarities (..., T, R), with a mask (..., T)."""
    if variant == "damsm":
        hidden = ~mask[..., None] & mask.any(dim=-1)[..., None, None]
        similarity = torch.softmax(similarity.masked_fill(hidden, -torch.inf), dim=-2)
    return torch.softmax(gamma * similarity, dim=-1)


def pool(logits_IJT: Tensor, mask_JT: Tensor) -> Tensor:
    """Log-sum-exp over the real keywords; 0, without a gradient, for a caption that has none."""
    some_J = mask_JT.any(dim=1)
    # Of a caption without keywords all logits are replaced, so that neither NaN nor a gradient comes out.
    safe_IJT = torch.where(mask_JT, logits_IJT, torch.where(some_J, -torch.inf, 0.0)[:, None])
    return torch.where(some_J, torch.logsumexp(safe_IJT, dim=2), 0.0)


def symmetric_cross_entropy(logits: Tensor, exclude: Tensor | None) -> Tensor:
    """Cross-entropy of logits (B, B) with the diagonal, over columns plus over rows, each a mean over the batch."""
    if len(logits) == 0:
        return logits.sum()
    if exclude is not None:
        negative = exclude & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(negative, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def cosines(images: Tensor, sentences: Tensor) -> Tensor:
    """Cosines (I, J) of features (I, D) and (J, D)."""
    return l2_normalize(accumulating(images)) @ l2_normalize(accumulating(sentences)).T


def accumulating(x: Tensor) -> Tensor:
    """x in the precision that the matching losses are computed in: float64 stays, everything else is float32."""
    return x if x.dtype == torch.float64 else x.float()
