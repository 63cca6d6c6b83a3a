"""What the two players minimise: adversarial losses, gradient penalties and the matching of images and text.

Everything here is float32, and a step casts the networks' outputs before it calls these; but the regions and keywords
that are matched come in the networks' precision.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from fastt2i.config import PENALTY_SIZE, LossConfig
from fastt2i.models.discriminator import ImageFeatures
from fastt2i.ops import global_match_loss, region_keyword_loss
from fastt2i.ops.convolution import only_input_gradients

#: Share of the distance of real images that is added to the distance of generated ones, to bound its inverse.
MODE_SEEKING_MARGIN = 0.1


def discriminator_adversarial(
    kind: str,
    real: Tensor,
    fake: Tensor,
    mismatched: Tensor,
    valid: Tensor,
    mismatched_weight: float,
    valid_count: Tensor | None = None,
) -> Tensor:
    """The discriminator's adversarial loss.

    Args:
        kind: `hinge` (Lim & Ye 2017) or `nonsaturating` (Goodfellow et al. 2014).
        real: (B,) logits of real images under their captions.
        fake: (B,) logits of generated images under the captions they were drawn from.
        mismatched: (B,) logits of real images under another caption.
        valid: (B,) bool, false where the other caption happens to be the same one; those take no part.
        mismatched_weight: share w of the mismatched pairs among the negatives; fakes weigh 1 - w.
        valid_count: scalar, what the sum over valid pairs is divided by; None for their number, or 1 if there are none.
            The mean of the losses of a batch's equal parts is that of the whole if each takes the mean of the numbers.
    """
    if kind == "hinge":
        positive, negative, wrong = F.relu(1 - real), F.relu(1 + fake), F.relu(1 + mismatched)
    else:
        positive, negative, wrong = F.softplus(-real), F.softplus(fake), F.softplus(mismatched)
    wrong_mean = (wrong * valid).sum() / (valid.sum().clamp(min=1) if valid_count is None else valid_count)
    return positive.mean() + (1 - mismatched_weight) * negative.mean() + mismatched_weight * wrong_mean


def generator_adversarial(kind: str, fake: Tensor) -> Tensor:
    """The generator's adversarial loss on logits (B,) of its images under their captions."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E |grad_x D(x, s)|^2 / 2 over real pairs (Mescheder et al. 2018, eq. 9), times (S / 32)^2.

    The same function of an image on twice as many pixels a side has a quarter of the squared gradient: so scaled, one
    weight means the same at every resolution, and at 32 px it is the paper's. StyleGAN3's settings grow alike.

    Args:
        logits: (B,) logits of real images under their captions, computed from `images`.
        images: (B, 3, S, S) real images that require a gradient.
    """
    (gradient,) = _input_gradients(logits, images)
    return (images.shape[-1] / PENALTY_SIZE) ** 2 * gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def ma_gp_penalty(logits: Tensor, images: Tensor, sentences: Tensor) -> Tensor:
    """Matching-aware gradient penalty: E |(grad_x D, grad_s D)|^6 over real matching pairs.

    DF-GAN (Tao et al. 2022, eq. 3) with its power p = 6 and, as its code has it, the norm of both gradients as one
    vector; its k = 2 is the weight.

    Args:
        logits: (B,) logits of real images under their captions, computed from `images` and `sentences`.
        images: (B, 3, S, S) real images that require a gradient.
        sentences: (B, d) sentence features that require a gradient.
    """
    gradients = _input_gradients(logits, images, sentences)
    squared_norm = sum((g.flatten(1).square().sum(dim=1) for g in gradients), start=logits.new_zeros(()))
    return squared_norm.pow(3).mean()


def _input_gradients(logits: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the sum of logits (B,), which can be differentiated in turn."""
    # A compiler leaves out by itself what nothing needs.
    with nullcontext() if torch.compiler.is_compiling() else only_input_gradients():
        return torch.autograd.grad(logits.sum(), inputs, create_graph=True)


def mode_seeking_loss(images: Tensor, others: Tensor, distance: float) -> Tensor:
    """What pulls apart two images of a caption that differ by less than real ones do, (N,), for each pair.

    Mode seeking (Mao et al. 2019, eq. 4) minimises |z1 - z2| / |I1 - I2|. Here the numerator, which hardly varies in
    many dimensions, is replaced by the distance of real images, and the loss ends where that is reached:
    max(0, (1 + m) r / (d + m r) - 1), d = mean |I1 - I2| of a pair, r = `distance`, m = MODE_SEEKING_MARGIN.

    Args:
        images, others: (N, 3, S, S) in [-1, 1]: of the same captions, drawn from other noise.
        distance: mean absolute difference of two real images of one caption, in the same units; above 0.
    """
    apart = (images - others).abs().mean(dim=(1, 2, 3))
    margin = MODE_SEEKING_MARGIN * distance
    return F.relu((distance + margin) / (apart + margin) - 1)


def region_match(
    config: LossConfig,
    images: ImageFeatures,
    keywords: Tensor,
    mask: Tensor,
    exclude: Tensor,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Region-keyword loss of images and captions, both in the images' space.

    Args:
        config: variant and sharpness.
        images: features of B images.
        keywords: (B, T, region_dim) projected keywords.
        mask: (B, T) bool, true where a keyword is.
        exclude: (B, B) bool, true for pairs that are no negatives; with a group, (B, captions of all its ranks).
        group: whose ranks' batches, of one size, are one; this process is alone by default.
    """
    return region_keyword_loss(
        images.regions,
        keywords,
        mask,
        variant=config.region_variant,
        gamma_attention=config.gamma_attention,
        gamma_pooling=config.gamma_pooling,
        gamma_matching=config.gamma_matching,
        exclude=exclude,
        gather=group,
        equal_batch_sizes=True,
    )


def sentence_match(
    config: LossConfig,
    images: ImageFeatures,
    sentence: Tensor,
    exclude: Tensor,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Global-sentence loss of images and captions.

    sentence: (B, global_dim) projected sentences; exclude, group: as in `region_match`.
    """
    return global_match_loss(
        images.global_, sentence, temperature=config.temperature, exclude=exclude, gather=group, equal_batch_sizes=True
    )
