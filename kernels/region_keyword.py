"""Scores of images with captions by the attention of keywords over regions, and their gradients.

Only real keywords are computed: they are packed to the front, caption by caption, without asking the device how many
there are; a program behind the last returns at once. M counts packed keywords, I images, J captions, T keywords of a
caption, R regions, D features; R and D are padded with zeros (`region_keyword_operands`), the others masked.

A keyword m and a region r of image i, with s its similarity and a its attention, give a context c = sum_r a v_r, the
cosine (sum_r a s) / (|c| |e|), and a caption's score is a log-sum-exp over its keywords. The forward pass streams
regions past a tile of keywords, as flash attention does, and keeps three numbers for every image and keyword. The
backward pass takes images in groups, so that what it writes down of the attention is bounded (`WORKSPACE`):

    contexts    c, by the forward kernel once more                                           2 products
    weights     w = d loss / d<e, v> and b = 2 a d loss / d|c|^2, from s and <c, v>          2
    regions     dV = w' e + b' c, each tile of it owned by one program                       2
    keywords    dE += w v, likewise                                                          1

in units of M x R x D multiply-adds an image. The forward pass has 2, where the context fits into registers; else 1, and
1 for every chunk of it (`blocks`). Two kernels that recompute the attention for dV and for dE and write nothing down
would need 5 + 4. There is no atomic addition: the same bits every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .region_keyword_operands import (
    INTERPRETED,
    Operands,
    largest_or_one,
    operands_like,
    pack,
    to_nearest,
    unpack_keywords,
    unpack_regions,
)

#: Bytes of attention weights and contexts that the backward pass holds at once (one image's at least).
WORKSPACE = 128 * 2**20
#: Multiprocessors to keep busy while dE is added up; a constant, so that the order of addition is the same everywhere.
PROGRAMS = 264
#: AttnGAN's floor of the product of two norms.
COSINE_FLOOR: tl.constexpr = tl.constexpr(1e-8)


@triton.jit
def _dot(a, b, sum):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def _keywords(p_start, captions, BLOCK_M: tl.constexpr, CAPTION: tl.constexpr):
    """Which packed keywords this program's tile has, and whether they exist: any, or CAPTION rows for every caption."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if CAPTION:
        j = row // CAPTION
        m = tl.load(p_start + j, j < captions, 0) + row % CAPTION
        return m, m < tl.load(p_start + j + 1, j < captions, 0)
    else:
        return row, row < tl.load(p_start + captions)


@triton.jit
def _over_caption(x, CAPTION: tl.constexpr, MAXIMUM: tl.constexpr):
    """The maximum or sum of x (BLOCK_M, BLOCK_R) over each caption's rows, at each of these rows."""
    x_3d = tl.reshape(x, (x.shape[0] // CAPTION, CAPTION, x.shape[1]))
    reduced = tl.max(x_3d, 1, keep_dims=True) if MAXIMUM else tl.sum(x_3d, 1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(reduced, x_3d.shape), x.shape)


@triton.jit
def _softmax_over_caption(s, m_m, CAPTION: tl.constexpr):
    s = tl.where(m_m[:, None], s, -float("inf"))
    power = tl.exp(s - _over_caption(s, CAPTION, True))
    return power / _over_caption(power, CAPTION, False)


@triton.jit
def _norms(square, p_v_scale, p_reach, m_m, CAPTION: tl.constexpr):
    """|c| |e| of an image's contexts and keywords; in `damsm` contexts are in units of the image's scale."""
    norms = tl.sqrt(square) * tl.load(p_reach, m_m, 0.0)
    return norms * tl.load(p_v_scale) if CAPTION else norms


@triton.jit
def forward_kernel(
    p_e, p_v, p_e_scale, p_v_scale, p_start, p_reach, p_cosine, p_lse, p_square, p_context,
    captions, keywords, regions, padded, gamma,
    D: tl.constexpr, CAPTION: tl.constexpr, CONTEXT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Cosine, log-sum-exp of the attention and |c|^2 of every keyword; or, with CONTEXT, c (rounded) and <c, c>."""
    o_m, m_m = _keywords(p_start, captions, BLOCK_M, CAPTION)
    if tl.sum(m_m.to(tl.int32), 0) == 0:
        return
    i = tl.program_id(1).to(tl.int64)
    p_v += i * padded * D
    o_row, o_out = o_m.to(tl.int64)[:, None] * D, i * keywords + o_m
    e_scale = tl.load(p_e_scale + o_m, m_m, 0.0)
    if BLOCK_K == D:  # the keywords stay
        e = tl.load(p_e + o_row + tl.arange(0, D), m_m[:, None], 0.0)
    square, top = tl.zeros((BLOCK_M,), tl.float32), tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total, numerator = square, square
    for d in range(0, D, BLOCK_D):
        context = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        total, numerator = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        for r in range(0, regions, BLOCK_R):
            o_r = r + tl.arange(0, BLOCK_R)
            m_r = o_r < regions
            s = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            if BLOCK_K == D:
                v = tl.load(p_v + o_r[:, None] * D + tl.arange(0, D), m_r[:, None], 0.0)
                s = _dot(e, tl.trans(v), s)
            else:
                for k in range(0, D, BLOCK_K):
                    o_k = k + tl.arange(0, BLOCK_K)
                    b_e = tl.load(p_e + o_row + o_k, m_m[:, None], 0.0)
                    s = _dot(b_e, tl.trans(tl.load(p_v + o_r[:, None] * D + o_k, m_r[:, None], 0.0)), s)
                v = tl.load(p_v + o_r[:, None] * D + d + tl.arange(0, BLOCK_D), m_r[:, None], 0.0)
            v_scale = tl.load(p_v_scale + i * padded + o_r, m_r, 0.0)[None, :]
            s *= e_scale[:, None] * v_scale
            logit = gamma * (_softmax_over_caption(s, m_m, CAPTION) if CAPTION else s)
            logit = tl.where(m_r[None, :], logit, -float("inf"))
            higher = tl.maximum(top, tl.max(logit, 1))
            power, shrink = tl.exp(logit - higher[:, None]), tl.exp(top - higher)
            top = higher
            total = total * shrink + tl.sum(power, 1)
            numerator = numerator * shrink + tl.sum(power * s, 1)
            weight = power if CAPTION else power * v_scale
            context = _dot(to_nearest(weight, v.dtype), v, context * shrink[:, None])
        context /= total[:, None]
        if CONTEXT:
            rounded = to_nearest(context, p_context.dtype.element_ty)
            o_context = (o_m.to(tl.int64) * tl.num_programs(1) + i)[:, None] * D + d + tl.arange(0, BLOCK_D)
            tl.store(p_context + o_context, rounded, m_m[:, None])
            square += tl.sum(context * rounded.to(tl.float32), 1)
        else:
            square += tl.sum(context * context, 1)
    tl.store(p_square + o_out, square, m_m)
    if not CONTEXT:
        norms = _norms(square, p_v_scale + i * padded, p_reach + o_m, m_m, CAPTION)
        cosine = numerator / total / tl.maximum(norms, COSINE_FLOOR)
        tl.store(p_cosine + o_out, cosine, m_m)
        tl.store(p_lse + o_out, top + tl.log(total), m_m)


@triton.jit
def pool_kernel(
    p_cosine, p_start, p_score, captions, keywords, gamma, divisor,
    CAPTION: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """A caption's score: the log-sum-exp of its keywords' gamma * cosine, over the divisor; 0 if it has none."""
    i = tl.program_id(1).to(tl.int64)
    o_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    start, end = tl.load(p_start + o_j, o_j < captions, 0), tl.load(p_start + o_j + 1, o_j < captions, 0)
    o_m = start[:, None] + tl.arange(0, CAPTION)[None, :]
    m_m = o_m < end[:, None]
    logit = tl.where(m_m, gamma * tl.load(p_cosine + i * keywords + o_m, m_m, 0.0), -float("inf"))
    top = tl.where(end > start, tl.max(logit, 1), 0.0)
    score = (top + tl.log(tl.sum(tl.exp(logit - top[:, None]), 1))) / divisor
    tl.store(p_score + i * captions + o_j, tl.where(end > start, score, 0.0), o_j < captions)


@triton.jit
def _coefficients(p_dscore, p_score, p_largest, cosine, square, norms, m_m, gamma, divisor):
    """What cosines, their numerators and twice their |c|^2 get, and what log(1 / |e|) does."""
    share = tl.exp(gamma * cosine - divisor * tl.load(p_score, m_m, 0.0))
    dcosine = tl.load(p_dscore, m_m, 0.0) / largest_or_one(p_largest) * share * (gamma / divisor)
    moves = norms >= COSINE_FLOOR  # else the floor, a constant, stands for the norms
    dnumerator = dcosine / tl.maximum(norms, COSINE_FLOOR)
    dnorm = tl.where(moves, dcosine * cosine, 0.0)
    return dcosine * cosine, dnumerator, tl.where(moves, -dcosine * cosine / square, 0.0), dnorm


@triton.jit
def weights_kernel(
    p_e, p_v, p_context, p_e_scale, p_v_scale, p_reach, p_start, p_caption, p_dscore, p_score, p_largest,
    p_cosine, p_lse, p_square, p_rounded_square, p_w, p_b, p_dnorm,
    captions, keywords, regions, padded, gamma_attention, gamma_pooling, divisor,
    D: tl.constexpr, CAPTION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """w, what every <e, v> gets, and b, the weight of a context in what a region gets; what log(1 / |e|) gets."""
    o_m, m_m = _keywords(p_start, captions, BLOCK_M, CAPTION)
    if tl.sum(m_m.to(tl.int32), 0) == 0:
        return
    i, images = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < regions
    o_row, o_context = o_m.to(tl.int64)[:, None] * D, (o_m.to(tl.int64) * images + i)[:, None] * D
    s, from_context = tl.zeros((BLOCK_M, BLOCK_R), tl.float32), tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for k in range(0, D, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        v = tl.trans(tl.load(p_v + i * padded * D + o_r[:, None] * D + o_k, m_r[:, None], 0.0))
        s = _dot(tl.load(p_e + o_row + o_k, m_m[:, None], 0.0), v, s)
        from_context = _dot(tl.load(p_context + o_context + o_k, m_m[:, None], 0.0), v, from_context)
    o_i = i * keywords + o_m
    o_score = i * captions + tl.load(p_caption + o_m, m_m, 0)
    cosine, square = tl.load(p_cosine + o_i, m_m, 0.0), tl.load(p_square + o_i, m_m, 1.0)
    norms = _norms(square, p_v_scale + i * padded, p_reach + o_m, m_m, CAPTION)
    mean, dnumerator, dsquare, dnorm = _coefficients(
        p_dscore + o_score, p_score + o_score, p_largest, cosine, square, norms, m_m, gamma_pooling, divisor
    )
    if tl.program_id(1) == 0:
        tl.store(p_dnorm + o_i, dnorm, m_m)
    # The mean of dattention under the attention, with the contexts as they were rounded: so it is exactly that mean.
    mean += dsquare * tl.load(p_rounded_square + o_i, m_m, 0.0)
    dnumerator = dnumerator[:, None]
    v_scale = tl.load(p_v_scale + i * padded + o_r, m_r, 0.0)[None, :]
    scale = tl.load(p_e_scale + o_m, m_m, 0.0)[:, None] * v_scale
    s *= scale
    first = _softmax_over_caption(s, m_m, CAPTION) if CAPTION else s
    attention = tl.exp(gamma_attention * first - tl.load(p_lse + o_i, m_m, 0.0)[:, None])
    attention = tl.where(m_r[None, :], attention, 0.0)
    weight = attention * dsquare[:, None] * (1.0 if CAPTION else v_scale)
    dfirst = gamma_attention * (attention * (dnumerator * s - mean[:, None]) + weight * from_context)
    if CAPTION:
        dfirst = first * (dfirst - _over_caption(first * dfirst, CAPTION, False))
    w = (dfirst + dnumerator * attention) * scale
    o_out, m_out = (o_m.to(tl.int64) * images + i)[:, None] * padded + o_r, m_m[:, None] & (o_r < padded)[None, :]
    tl.store(p_w + o_out, to_nearest(w, p_w.dtype.element_ty), m_out)
    tl.store(p_b + o_out, to_nearest(weight, p_b.dtype.element_ty), m_out)


@triton.jit
def regions_kernel(
    p_w, p_e, p_b, p_context, p_start, p_dv, captions, padded,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dV = w' e + b' c of one image, (padded, D) in float32; sums over all keywords."""
    i, images = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_r, m_d = o_r < padded, o_d < D
    count = tl.load(p_start + captions)
    dv = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for m in range(0, count, BLOCK_K):
        o_m = (m + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None]
        w = tl.load(p_w + (o_m * images + i) * padded + o_r, (o_m < count) & m_r, 0.0)
        dv = _dot(tl.trans(w), tl.load(p_e + o_m * D + o_d, (o_m < count) & m_d, 0.0), dv)
    for m in range(0, count, BLOCK_K):
        o_m = (m + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None]
        b = tl.load(p_b + (o_m * images + i) * padded + o_r, (o_m < count) & m_r, 0.0)
        dv = _dot(tl.trans(b), tl.load(p_context + (o_m * images + i) * D + o_d, (o_m < count) & m_d, 0.0), dv)
    tl.store(p_dv + (i * padded + tl.trans(o_r)) * D + o_d, dv, tl.trans(m_r) & m_d)


@triton.jit
def keywords_kernel(
    p_w, p_v, p_start, p_de, captions, keywords, columns, share,
    D: tl.constexpr, BEGUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dE = w v in float32, (M, D), over the share of columns, regions of a group's images, that this program has.

    BEGUN: whether there was a group before, to whose sum it is added.
    """
    count = tl.load(p_start + captions)
    o_m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    if tl.program_id(0) * BLOCK_M >= count:
        return
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    part, m_out = tl.program_id(2).to(tl.int64), (o_m < count) & (o_d < D)
    p_out = p_de + (part * keywords + o_m) * D + o_d
    de = tl.load(p_out, m_out, 0.0) if BEGUN else tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = tl.minimum((tl.program_id(2) + 1) * share, columns)
    for c in range(tl.program_id(2) * share, end, BLOCK_K):
        o_c = c + tl.arange(0, BLOCK_K)
        w = tl.load(p_w + o_m * columns + o_c[None, :], (o_m < count) & (o_c < end)[None, :], 0.0)
        v = tl.load(p_v + o_c.to(tl.int64)[:, None] * D + o_d, (o_c < end)[:, None] & (o_d < D), 0.0)
        de = _dot(w, v, de)
    tl.store(p_out, de, m_out)


class Blocks(NamedTuple):
    """Sizes of the kernels' tiles."""

    forward: dict[str, int]
    weights: dict[str, int]
    regions: dict[str, int]
    keywords: dict[str, int]


def forward(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> tuple[Tensor, Tensor, Operands]:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T), and what the backward pass needs.

    That is, (3, I, J * T) for packed keywords and zero behind the last: cosines, log-sum-exps of the attention,
    |c|^2; all are float32; and the operands, uninitialised where there is no score.
    """
    images, captions = len(regions), len(keywords)
    scores = torch.empty(images, captions, dtype=torch.float32, device=regions.device)
    statistics = torch.zeros(3, images, mask.numel(), dtype=torch.float32, device=regions.device)
    if not statistics.numel():
        return scores.zero_(), statistics, operands_like(regions, keywords)
    given = pack(regions, keywords, mask, variant)
    cosine, lse, square = statistics
    _attend(given, regions.shape[1], mask.shape, variant, gamma_attention, cosine, lse, square, None)
    caption = triton.next_power_of_2(mask.shape[1])
    block_j = max(1, 1024 // caption)
    pool_kernel[triton.cdiv(captions, block_j), images](
        cosine, given.split_places(captions)[0], scores, captions, mask.numel(), gamma_pooling,
        _divisor(variant, gamma_pooling), caption, block_j, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return scores, statistics, given


def backward(
    dscores: Tensor, regions: Tensor, keywords: Tensor, scores: Tensor, statistics: Tensor, given: Operands,
    variant: str, gamma_attention: float, gamma_pooling: float, for_regions: bool, for_keywords: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of regions and keywords, in their dtype, given that of the scores (I, J), contiguous, in float32.

    Of regions and keywords no values are read. An empty tensor takes the place of a gradient that is not wanted.
    """
    dregions = torch.empty(regions.shape if for_regions else (0,), dtype=regions.dtype, device=regions.device)
    dkeywords = torch.empty(keywords.shape if for_keywords else (0,), dtype=keywords.dtype, device=keywords.device)
    if not statistics.numel():
        return dregions.zero_(), dkeywords.zero_()
    largest = torch.linalg.vector_norm(dscores, ord=torch.inf)
    shape = keywords.shape[:2]
    (images, padded, width), rows = given.v.shape, len(given.e)
    tiles = _blocks(given, variant, shape[1]).keywords
    group = max(1, min(images, WORKSPACE // (rows * (2 * padded + width) * regions.element_size())))
    de_tiles = triton.cdiv(rows, tiles["BLOCK_M"]) * triton.cdiv(width, tiles["BLOCK_D"])
    parts = min(group, triton.cdiv(PROGRAMS, de_tiles))
    de = torch.empty(parts, rows, width, dtype=torch.float32, device=regions.device) if for_keywords else None
    dv = torch.empty(group, padded, width, dtype=torch.float32, device=regions.device) if for_regions else None
    dnorm = torch.empty(images, rows, dtype=torch.float32, device=regions.device)
    for i in range(0, images, group):
        s = slice(i, i + group)
        share = given._replace(v=given.v[s], of_regions=given.of_regions[:, s])
        context, w, b = _weights(
            share, regions.shape[1], shape, variant, gamma_attention, gamma_pooling,
            dscores[s], scores[s], largest, statistics[:, s], dnorm[s],
        )  # fmt: skip
        if dv is not None:
            _add_up_regions(share, shape, variant, context, w, b, dv)
            unpack_regions(dv, share.v, share.of_regions, largest, dregions[s])
        if de is not None:
            _add_up_keywords(share, shape, variant, w, de, begun=i > 0)
        del context, w, b  # before those of the next group are there
    if de is not None:
        unpack_keywords(de, given, dnorm, largest, dkeywords)
    return dregions, dkeywords


def _attend(
    given: Operands, regions: int, shape: torch.Size, variant: str, gamma: float,
    cosine: Tensor | None, lse: Tensor | None, square: Tensor, context: Tensor | None,
) -> None:  # fmt: skip
    """Fill cosine, lse and square (I, M), or square and context (M, I, Q)."""
    (images, padded, width), (captions, count) = given.v.shape, shape
    caption = caption_rows(variant, count)
    tiles = _blocks(given, variant, count).forward
    grid = _row_tiles(shape, variant, tiles["BLOCK_M"]), images
    e_scale, _, _, reach = given.of_keywords
    forward_kernel[grid](
        given.e, given.v, e_scale, given.of_regions[0], given.split_places(captions)[0], reach,
        cosine, lse, square, context, captions, len(given.e), regions, padded, gamma,
        D=width, CAPTION=caption, CONTEXT=context is not None, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def _weights(
    given: Operands, regions: int, shape: torch.Size, variant: str, gamma_attention: float, gamma_pooling: float,
    dscores: Tensor, scores: Tensor, largest: Tensor, statistics: Tensor, dnorm: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Contexts (M, I, Q) of a group, and w and b (M, I, P); dnorm (I, M) is filled."""
    (images, padded, width), (captions, count), rows = given.v.shape, shape, len(given.e)
    tiles = _blocks(given, variant, count).weights
    context, w, b = (
        torch.empty(rows, images, size, dtype=given.v.dtype, device=given.v.device) for size in (width, padded, padded)
    )
    cosine, lse, square = statistics
    rounded_square = torch.empty_like(square)
    _attend(given, regions, shape, variant, gamma_attention, None, None, rounded_square, context)
    grid = _row_tiles(shape, variant, tiles["BLOCK_M"]), triton.cdiv(padded, tiles["BLOCK_R"]), images
    e_scale, _, _, reach = given.of_keywords
    start, caption, _ = given.split_places(captions)
    weights_kernel[grid](
        given.e, given.v, context, e_scale, given.of_regions[0], reach, start, caption, dscores, scores, largest,
        cosine, lse, square, rounded_square, w, b, dnorm,
        captions, rows, regions, padded, gamma_attention, gamma_pooling, _divisor(variant, gamma_pooling),
        D=width, CAPTION=caption_rows(variant, count), enable_fp_fusion=True, **tiles,
    )  # fmt: skip
    return context, w, b


def _add_up_regions(
    given: Operands, shape: torch.Size, variant: str, context: Tensor, w: Tensor, b: Tensor, dv: Tensor
) -> None:
    """Fill dv (I or more, P, Q) with the gradient of a group's v, in float32."""
    (images, padded, width), (captions, count) = given.v.shape, shape
    tiles = _blocks(given, variant, count).regions
    grid = triton.cdiv(padded, tiles["BLOCK_R"]), triton.cdiv(width, tiles["BLOCK_D"]), images
    regions_kernel[grid](
        w, given.e, b, context, given.split_places(captions)[0], dv, captions, padded, D=width,
        enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def _add_up_keywords(given: Operands, shape: torch.Size, variant: str, w: Tensor, de: Tensor, *, begun: bool) -> None:
    """Add a group's gradient of e to de (parts, M, Q), which is uninitialised unless begun, in float32."""
    (images, padded, width), (captions, count), rows = given.v.shape, shape, len(given.e)
    tiles = _blocks(given, variant, count).keywords
    grid = triton.cdiv(rows, tiles["BLOCK_M"]), triton.cdiv(width, tiles["BLOCK_D"]), len(de)
    keywords_kernel[grid](
        w, given.v, given.split_places(captions)[0], de, captions, rows, images * padded,
        triton.cdiv(images, len(de)) * padded, D=width, BEGUN=begun, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def _divisor(variant: str, gamma_pooling: float) -> float:
    """Of a score."""
    return gamma_pooling if variant == "xmc" else 1.0


def blocks(width: int, dtype: torch.dtype, caption: int, generation: int) -> Blocks:
    """Tiles and warps for (padded) feature size, dtype, rows of a caption and a GPU's generation (8: A100, 9: H100).

    Chosen by compiling ahead of time so that no register spills, not by timing; captions of more than 64 rows need a
    tile of their own size. Without `maxnreg` the assembler of Triton 3.6 spills for the sake of occupancy.
    """
    if dtype == torch.float32:  # no tensor cores: threads hold their operands in registers, so inner sizes are small
        rows, chunk = max(32, caption), min(width, 64)
        small = {"BLOCK_K": 16, "num_stages": 2}
        wide = {**small, "BLOCK_M": rows, "BLOCK_R": 16, "num_warps": 4 if rows <= 64 else 8}
        return Blocks(
            forward={**wide, "BLOCK_D": chunk, "maxnreg": 255},
            weights={**wide, "maxnreg": 255},
            regions={**small, "BLOCK_R": 64, "BLOCK_D": chunk, "num_warps": 4},
            keywords={**small, "BLOCK_M": 64, "BLOCK_D": chunk, "num_warps": 4},
        )
    rows = max(64, caption)
    roomy = rows == 64 and (generation >= 9 or not caption)
    chunk = min(width, 256 if width % 256 == 0 and roomy else 128)
    whole = {"BLOCK_K": width if width == chunk else 64}  # the keywords' tile stays, if it can
    streamed = 64 if generation >= 9 else 32
    return Blocks(
        forward={
            **{"BLOCK_M": rows, "BLOCK_R": streamed, "BLOCK_D": chunk, **whole},
            **{"num_warps": 8, "num_stages": 2, "maxnreg": 255},
        },
        weights={"BLOCK_M": 128, "BLOCK_R": streamed, "BLOCK_K": min(width, 64), "num_warps": 8, "num_stages": 3},
        regions={"BLOCK_R": 128, "BLOCK_D": min(width, 128), "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        keywords={"BLOCK_M": 128, "BLOCK_D": min(width, 128), "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
    )


def _blocks(given: Operands, variant: str, count: int) -> Blocks:
    device = given.v.device
    generation = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
    return blocks(given.v.shape[2], given.v.dtype, caption_rows(variant, count), generation)


def caption_rows(variant: str, count: int) -> int:
    """Rows of a tile that belong to one caption; 0 if its keywords may lie in several tiles."""
    return triton.next_power_of_2(count) if variant == "damsm" else 0


def _row_tiles(shape: torch.Size, variant: str, block_m: int) -> int:
    """Tiles that hold all keywords of (captions, keywords of each)."""
    captions, count = shape
    return triton.cdiv(captions * (caption_rows(variant, count) or count), block_m)
