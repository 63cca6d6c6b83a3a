"""Region-keyword scores in PyTorch, computed in blocks: the attention of a few images at a time is all there ever is.

Only real keywords are computed: they are packed to the front, captions of equal length side by side, so that a softmax
over a caption's keywords is one over a dimension. Images come in groups and packed keywords in chunks, as many as fill
a buffer (`BUFFER`). M counts the keywords of a chunk, G the images of a group, R regions, D features; the attention of
both is (G, M, R), and every pass over it goes image by image, matrix products included: so a thread reads what it
wrote itself, in its own cache. Where passes were divided among threads in several ways, some processes on 2 CPU cores
took 1.2 to 1.4 times as long as others.

With s the similarities, a the attention, n = sum_r a s and q = |c|^2 of the context c = sum_r a v_r, a cosine is
n / (sqrt(q) |e|). With rho = n / q, its gradients are, times d loss / d n,

    da_r = s_r - rho <c, v_r>        whose mean under a is n - rho q = 0: the softmax's gradient is a da alone
    dv_r = a_r (e - rho c)           in addition to the gradient through s

The squared norm takes a Gram matrix of the regions, q = sum_r a_r (G a)_r and <c, v_r> = (G a)_r, or the contexts
themselves, whichever is less work. In multiply-adds, in units of M x R x D an image: forward 1 + R/D + R/M or 2,
backward 3 + 2 R/D + 2 R/M or 6. The backward pass reads s and c, or G a, of the first images as the forward saved them,
as many as fit (`SAVED`): 1 + R/D or 2 less.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.ops.numerics import accumulation_dtype, infinity_to_nan
from fastt2i.ops.region_keyword import image_groups
from fastt2i.ops.region_keyword.image_groups import ImageGroup, Workspace, new_saved, split_images
from fastt2i.ops.region_keyword.packing import (
    Chunk,
    PackedKeywords,
    by_length,
    normalize_backward,
    pack_keywords,
    tiny,
)
from fastt2i.ops.region_keyword.reference import COSINE_FLOOR, pool


def region_keyword_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T); differentiable once."""
    save = torch.is_grad_enabled() and (regions.requires_grad or keywords.requires_grad)
    settings = variant, gamma_attention, gamma_pooling, image_groups.num_threads(regions)
    return region_keyword_blocks(regions, keywords, mask, *settings, save)[0]


@torch.library.custom_op("fastt2i::region_keyword_blocks", mutates_args=())
def region_keyword_blocks(
    regions: Tensor,
    keywords: Tensor,
    mask: Tensor,
    variant: str,
    gamma_attention: float,
    gamma_pooling: float,
    threads: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (I, J), and for the gradient cosines and |c|^2 of packed keywords, (I, J * T), zero beyond them; and, if
    `save`, similarities and contexts of as many images as fit into `SAVED` bytes. Their layout depends on the number of
    threads, so the backward pass gets the same number, whatever it runs with."""
    cosine, square, unpacked = (
        regions.new_zeros(len(regions), mask.numel(), dtype=accumulation_dtype(regions)) for _ in range(3)
    )
    saved = new_saved(regions, mask, save)
    with torch.autocast(regions.device.type, enabled=False):
        packed = pack_keywords(keywords, mask, variant, gamma_attention)
        if count := len(packed.slots):
            workspace = Workspace(packed.features)
            numerator, squared = cosine[:, :count], square[:, :count]
            for group in split_images(regions, packed, variant, threads, saved, image_groups.GRAM_FORWARD):
                _forward_group(group, packed, workspace, variant, gamma_attention, numerator, squared)
            squared.copy_(infinity_to_nan(squared))
            numerator.div_(_norms(squared, packed).clamp_(min=COSINE_FLOOR).mul_(packed.factor))
            unpacked[:, packed.slots] = numerator
        scores = pool(gamma_pooling * unpacked.unflatten(1, mask.shape), mask)
        scores = scores / gamma_pooling if variant == "xmc" else scores
    return scores, cosine, square, saved


@torch.library.custom_op("fastt2i::region_keyword_blocks_backward", mutates_args=())
def region_keyword_blocks_backward(
    dscores: Tensor,
    regions: Tensor,
    keywords: Tensor,
    mask: Tensor,
    scores: Tensor,
    cosine: Tensor,
    square: Tensor,
    saved: Tensor,
    variant: str,
    gamma_attention: float,
    gamma_pooling: float,
    threads: int,
    for_regions: bool,
    for_keywords: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of regions and keywords; an empty tensor for one that is not wanted."""
    dregions = regions.new_zeros(regions.shape if for_regions else 0)
    dkeywords = keywords.new_zeros(keywords.shape if for_keywords else 0)
    with torch.autocast(regions.device.type, enabled=False):
        packed = pack_keywords(keywords, mask, variant, gamma_attention)
        if not len(packed.slots) or not len(regions):
            return dregions, dkeywords
        upstream = _cosine_backward(dscores, scores, cosine, square, packed, variant, gamma_pooling)
        de = torch.zeros_like(packed.features) if for_keywords else None
        workspace = Workspace(packed.features)
        for group in split_images(regions, packed, variant, threads, saved, image_groups.GRAM_BACKWARD):
            dv = workspace.get("dv", group.features.shape).zero_() if for_regions else None
            _backward_group(group, packed, workspace, upstream, variant, gamma_attention, dv, de)
            if dv is not None:
                dregions[group.images] = normalize_backward(dv, group.features, group.scale, group.above_floor).to(
                    regions.dtype
                )
        if de is not None:
            # Similarities were computed with gamma * e; and a keyword's own norm is in its cosine's denominator.
            unit = packed.features / packed.factor
            de.addcmul_(unit, (upstream.radial / packed.norm.square().clamp(min=tiny(de)))[:, None], value=-1)
            de = normalize_backward(de, unit, packed.scale, packed.above_floor)
            dkeywords.flatten(0, 1)[packed.slots] = de.to(keywords.dtype)
    return dregions, dkeywords


@region_keyword_blocks.register_fake
def _(regions: Tensor, keywords: Tensor, mask: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = regions.new_empty(len(regions), len(keywords), dtype=accumulation_dtype(regions))
    cosine, square = (
        regions.new_empty(len(regions), mask.numel(), dtype=accumulation_dtype(regions)) for _ in range(2)
    )
    return scores, cosine, square, new_saved(regions, mask, others[-1])


@region_keyword_blocks_backward.register_fake
def _(dscores: Tensor, regions: Tensor, keywords: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, for_regions, for_keywords = others
    return (
        regions.new_empty(regions.shape if for_regions else 0),
        keywords.new_empty(keywords.shape if for_keywords else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    regions, keywords, mask, *ctx.settings, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as these outputs are allocated for their gradients
    ctx.save_for_backward(regions, keywords, mask, *output)


def _autograd_backward(ctx: Any, dscores: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if dscores is None:
        return 8 * (None,)
    for_regions, for_keywords = ctx.needs_input_grad[:2]
    dregions, dkeywords = region_keyword_blocks_backward(
        dscores, *ctx.saved_tensors, *ctx.settings, for_regions, for_keywords
    )
    return dregions if for_regions else None, dkeywords if for_keywords else None, *6 * (None,)


def _no_second_derivative(ctx: Any, *unused: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "region_keyword_scores: with impl='torch' it differentiates once; for a second derivative use impl='reference'"
    )


region_keyword_blocks.register_autograd(_autograd_backward, setup_context=_setup_context)
region_keyword_blocks_backward.register_autograd(_no_second_derivative)


class _CosineGradients(NamedTuple):
    """Gradients of every cosine's parts, (I, N)."""

    dnumerator: Tensor
    rho: Tensor  # n / q, times -`factor`; 0 where the floor replaces the norms
    mean: Tensor  # of da under the attention, times `factor`: not 0 only where the floor replaces the norms
    floored: bool  # whether it does anywhere
    radial: Tensor  # (N,) the gradient of log(1 / |e|)


def _forward_group(
    group: ImageGroup,
    packed: PackedKeywords,
    workspace: Workspace,
    variant: str,
    gamma: float,
    numerator_IN: Tensor,
    square_IN: Tensor,
) -> None:
    """Fill in, for a group's images, the numerators sum_r a s times `packed.factor`, and |c|^2."""
    v_GRD = group.features
    gram = _gram(v_GRD, workspace) if group.by_gram else None
    for chunk in group.chunks:
        s, c = _similarities_and_contexts(group, chunk, workspace)
        a = workspace.get("a", s.shape)
        torch.bmm(_expand_over_images(packed.features[chunk.rows], s), v_GRD.mT, out=s)
        _attend(s, chunk, variant, gamma, workspace.get("other", s.shape), a)
        torch.bmm(a, v_GRD if gram is None else gram, out=c)
        squares = torch.mul(c, c if gram is None else a, out=workspace.get("other", c.shape))
        torch.sum(squares, dim=2, out=square_IN[group.images, chunk.rows])
        torch.sum(a.mul_(s), dim=2, out=numerator_IN[group.images, chunk.rows])


def _similarities_and_contexts(group: ImageGroup, chunk: Chunk, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Buffers of similarities (G, M, R), times `packed.factor`, and of contexts (G, M, D) or G a (G, M, R): the saved
    ones, or of the workspace."""
    images, count, features = group.features.shape
    rows, width = chunk.rows.stop - chunk.rows.start, count if group.by_gram else features
    if group.saved is None:
        return workspace.get("s", (images, rows, count)), workspace.get("other", (images, rows, width))
    begin, middle, end = (
        images * (chunk.rows.start * (count + width) + rows * further) for further in (0, count, count + width)
    )
    return group.saved[begin:middle].view(images, rows, count), group.saved[middle:end].view(images, rows, width)


def _norms(square: Tensor, packed: PackedKeywords) -> Tensor:
    """|c| |e| of |c|^2 (I, N)."""
    return square.clamp(min=tiny(square)).sqrt_().mul_(packed.norm)


def _cosine_backward(
    dscores: Tensor, scores: Tensor, cosine: Tensor, square: Tensor, packed: PackedKeywords, variant: str, gamma: float
) -> _CosineGradients:
    divisor = gamma if variant == "xmc" else 1.0
    cosine, square = (x[:, : len(packed.slots)] for x in (cosine, square))
    scores, dscores = (x.index_select(1, packed.captions) for x in (scores, dscores))
    dcosine = scores.mul_(-divisor).add_(cosine, alpha=gamma).exp_().mul_(dscores).mul_(gamma / divisor)
    norms = _norms(square, packed)
    above_floor = norms >= COSINE_FLOOR
    norms = norms.clamp(min=COSINE_FLOOR)
    dnumerator, numerator = dcosine / norms, cosine * norms
    mean = torch.where(above_floor, 0.0, numerator)
    return _CosineGradients(
        dnumerator=dnumerator,
        rho=torch.where(above_floor, numerator / square.clamp(min=tiny(square)), 0.0).mul_(-packed.factor),
        mean=mean.mul_(packed.factor),
        floored=bool(mean.any()),
        radial=torch.where(above_floor, dcosine * cosine, 0.0).sum(dim=0),
    )


def _backward_group(
    group: ImageGroup,
    packed: PackedKeywords,
    workspace: Workspace,
    upstream: _CosineGradients,
    variant: str,
    gamma: float,
    dv: Tensor | None,
    de: Tensor | None,
) -> None:
    """Add a group's gradients to dv (G, R, D), of its normalised regions, and to de (N, D), of all keywords."""
    v_GRD = group.features
    images, count, _ = v_GRD.shape
    gram = dgram = None
    if group.by_gram:
        gram = _gram(v_GRD, workspace) if group.saved is None else None
        dgram = workspace.get("dgram", (images, count, count)).zero_()
    for chunk in group.chunks:
        part = group.images, chunk.rows, None
        dnumerator, rho, mean = upstream.dnumerator[part], upstream.rho[part], upstream.mean[part]
        s, c = _similarities_and_contexts(group, chunk, workspace)
        a, scaled_attention, da = (workspace.get(name, s.shape) for name in ("a", "scaled_attention", "s"))
        first = workspace.get("first", s.shape) if variant == "damsm" else scaled_attention
        if group.saved is None:
            torch.bmm(_expand_over_images(packed.features[chunk.rows], s), v_GRD.mT, out=s)
        _attend(s, chunk, variant, gamma, first, a, scaled_attention)
        if group.saved is None:  # s is da
            torch.mul(a, rho, out=scaled_attention)
            if gram is not None:
                da.baddbmm_(scaled_attention, gram)
            else:
                da.baddbmm_(torch.bmm(scaled_attention, v_GRD, out=c), v_GRD.mT)
        elif group.by_gram:
            torch.mul(a, rho, out=scaled_attention)
            torch.addcmul(s, c, rho, out=da)
        else:
            c = torch.mul(c, rho, out=workspace.get("other", c.shape))
            torch.bmm(c, v_GRD.mT, out=da).add_(s)
        a.mul_(dnumerator)
        if dgram is not None:
            dgram.baddbmm_(a.mT, scaled_attention)
        elif dv is not None:
            dv.baddbmm_(a.mT, c, alpha=1 / packed.factor)
        if upstream.floored:
            da.sub_(mean)
        if variant == "xmc":
            w = torch.addcmul(a, a, da, out=da)
        else:
            w = torch.add(a, _keyword_softmax_backward(da.mul_(a), first, chunk), alpha=gamma, out=da)
        if dv is not None:
            dv.baddbmm_(w.mT, _expand_over_images(packed.features[chunk.rows], w), alpha=1 / packed.factor)
        if de is not None:
            de[chunk.rows] += _sum_over_images(w, v_GRD, workspace)
    if dv is not None and dgram is not None:
        dv.baddbmm_(dgram, v_GRD, alpha=1 / packed.factor)


def _attend(
    s: Tensor, chunk: Chunk, variant: str, gamma: float, first: Tensor, a: Tensor, spare: Tensor | None = None
) -> None:
    """Fill a with the attention of similarities s; and `first`, for `damsm`, with the softmax over keywords, which is
    overwritten without a spare buffer."""
    if variant == "xmc":
        torch.softmax(s, dim=2, out=a)
        return
    for source, target in zip(by_length(s, chunk), by_length(first, chunk), strict=True):
        torch.softmax(source, dim=2, out=target)
    torch.softmax(torch.mul(first, gamma, out=first if spare is None else spare), dim=2, out=a)


def _keyword_softmax_backward(dfirst: Tensor, first: Tensor, chunk: Chunk) -> Tensor:
    """The gradient of similarities through the softmax over keywords whose result is `first`; in place."""
    d = dfirst.mul_(first)
    for gradient, softmax in zip(by_length(d, chunk), by_length(first, chunk), strict=True):
        gradient.addcmul_(softmax, gradient.sum(dim=2, keepdim=True), value=-1)
    return d


def _expand_over_images(keywords: Tensor, like: Tensor) -> Tensor:
    """Keywords (M, D), the same for each image of a group: (G, M, D)."""
    return keywords.expand(len(like), *keywords.shape)


def _sum_over_images(w: Tensor, v_GRD: Tensor, workspace: Workspace) -> Tensor:
    """The sum over images of w (G, M, R) times v (G, R, D): (M, D)."""
    # Each part is summed by itself, at the same time as the others.
    parts = len(w) if w.device.type == "cuda" else math.gcd(len(w), image_groups.num_threads(w))
    w, v = (x.unflatten(0, (parts, -1)) for x in (w, v_GRD))
    sums = torch.bmm(w[:, 0], v[:, 0], out=workspace.get("sums", (parts, w.shape[2], v.shape[3])))
    for image in range(1, w.shape[1]):
        sums.baddbmm_(w[:, image], v[:, image])
    return sums.sum(dim=0)


def _gram(v_GRD: Tensor, workspace: Workspace) -> Tensor:
    images, count, _ = v_GRD.shape
    return torch.bmm(v_GRD, v_GRD.mT, out=workspace.get("gram", (images, count, count)))
