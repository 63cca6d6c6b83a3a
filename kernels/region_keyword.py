"""Scores of images with captions by the attention of keywords over regions, and their gradients.

Only real keywords are computed: they are packed to the front, caption by caption, without asking the device how many
there are; a program behind the last returns at once. M counts packed keywords, I images, J captions, T keywords of a
caption, R regions, D features; R and D are padded with zeros (`Operands`), the others masked.

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

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Bytes of attention weights and contexts that the backward pass holds at once (one image's at least).
WORKSPACE = 128 * 2**20
#: Multiprocessors to keep busy while dE is added up; a constant, so that the order of addition is the same everywhere.
PROGRAMS = 264
#: XMC-GAN's floor of a norm, and AttnGAN's of the product of two norms.
NORM_FLOOR = 1e-6
COSINE_FLOOR: tl.constexpr = tl.constexpr(1e-8)
#: The interpreter multiplies the bits of bfloat16 as integers, so there dots are of float32; and it cuts float32 off to
#: bfloat16 where a GPU rounds to the nearest.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _dot(a, b, sum):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)


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
def forward_kernel(
    p_e, p_v, p_e_scale, p_v_scale, p_start, p_reach, p_c_scale, p_cosine, p_lse, p_square, p_context,
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
            context = _dot(_rounded(weight, v.dtype), v, context * shrink[:, None])
        context /= total[:, None]
        if CONTEXT:
            rounded = _rounded(context, p_context.dtype.element_ty)
            o_context = (o_m.to(tl.int64) * tl.num_programs(1) + i)[:, None] * D + d + tl.arange(0, BLOCK_D)
            tl.store(p_context + o_context, rounded, m_m[:, None])
            square += tl.sum(context * rounded.to(tl.float32), 1)
        else:
            square += tl.sum(context * context, 1)
    tl.store(p_square + o_out, square, m_m)
    if not CONTEXT:
        reach = tl.load(p_c_scale + i) * tl.load(p_reach + o_m, m_m, 0.0)
        cosine = numerator / total / tl.maximum(tl.sqrt(square) * reach, COSINE_FLOOR)
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
def coefficients_kernel(
    p_dscore, p_score, p_cosine, p_square, p_caption, p_start, p_reach, p_c_scale,
    p_dcosine, p_dnumerator, p_dsquare, p_radial,
    captions, keywords, images, gamma, divisor, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What every cosine, its numerator and twice its |c|^2 get; p_radial, over images, what log(1 / |e|) gets."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < tl.load(p_start + captions)
    o_i, o_ij = o_m.to(tl.int64), tl.load(p_caption + o_m, m_m, 0).to(tl.int64)
    keyword_reach = tl.load(p_reach + o_m, m_m, 0.0)
    radial = tl.load(p_radial + o_m, m_m, 0.0)
    for i in range(0, images):
        cosine, square = tl.load(p_cosine + o_i, m_m, 0.0), tl.load(p_square + o_i, m_m, 1.0)
        share = tl.exp(gamma * cosine - divisor * tl.load(p_score + o_ij, m_m, 0.0))
        dcosine = tl.load(p_dscore + o_ij, m_m, 0.0) * share * (gamma / divisor)
        norms = tl.sqrt(square) * tl.load(p_c_scale + i) * keyword_reach
        moves = norms >= COSINE_FLOOR  # else the floor, a constant, stands for the norms
        tl.store(p_dcosine + o_i, dcosine * cosine, m_m)
        tl.store(p_dnumerator + o_i, dcosine / tl.maximum(norms, COSINE_FLOOR), m_m)
        tl.store(p_dsquare + o_i, tl.where(moves, -dcosine * cosine / square, 0.0), m_m)
        radial += tl.where(moves, dcosine * cosine, 0.0)
        o_i, o_ij = o_i + keywords, o_ij + captions
    tl.store(p_radial + o_m, radial, m_m)


@triton.jit
def weights_kernel(
    p_e, p_v, p_context, p_e_scale, p_v_scale, p_start, p_lse, p_square, p_dcosine, p_dnumerator, p_dsquare, p_w, p_b,
    captions, keywords, regions, padded, gamma,
    D: tl.constexpr, CAPTION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """w, what every <e, v> gets, and b, the weight of a context in what a region gets."""
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
    v_scale = tl.load(p_v_scale + i * padded + o_r, m_r, 0.0)[None, :]
    scale = tl.load(p_e_scale + o_m, m_m, 0.0)[:, None] * v_scale
    s *= scale
    first = _softmax_over_caption(s, m_m, CAPTION) if CAPTION else s
    o_i = i * keywords + o_m
    attention = tl.exp(gamma * first - tl.load(p_lse + o_i, m_m, 0.0)[:, None])
    attention = tl.where(m_r[None, :], attention, 0.0)
    dnumerator = tl.load(p_dnumerator + o_i, m_m, 0.0)[:, None]
    dsquare = tl.load(p_dsquare + o_i, m_m, 0.0)
    # The mean of dattention under the attention, with the contexts as they were rounded: so it is exactly that mean.
    mean = tl.load(p_dcosine + o_i, m_m, 0.0) + dsquare * tl.load(p_square + o_i, m_m, 0.0)
    weight = attention * dsquare[:, None] * (1.0 if CAPTION else v_scale)
    dfirst = gamma * (attention * (dnumerator * s - mean[:, None]) + weight * from_context)
    if CAPTION:
        dfirst = first * (dfirst - _over_caption(first * dfirst, CAPTION, False))
    w = (dfirst + dnumerator * attention) * scale
    o_out, m_out = (o_m.to(tl.int64) * images + i)[:, None] * padded + o_r, m_m[:, None] & (o_r < padded)[None, :]
    tl.store(p_w + o_out, _rounded(w, p_w.dtype.element_ty), m_out)
    tl.store(p_b + o_out, _rounded(weight, p_b.dtype.element_ty), m_out)


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
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dE += w v in float32, (M, D), over the share of columns, regions of a group's images, that this program has."""
    count = tl.load(p_start + captions)
    o_m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    if tl.program_id(0) * BLOCK_M >= count:
        return
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    part, m_out = tl.program_id(2).to(tl.int64), (o_m < count) & (o_d < D)
    p_out = p_de + (part * keywords + o_m) * D + o_d
    de = tl.load(p_out, m_out, 0.0)
    end = tl.minimum((tl.program_id(2) + 1) * share, columns)
    for c in range(tl.program_id(2) * share, end, BLOCK_K):
        o_c = c + tl.arange(0, BLOCK_K)
        w = tl.load(p_w + o_m * columns + o_c[None, :], (o_m < count) & (o_c < end)[None, :], 0.0)
        v = tl.load(p_v + o_c.to(tl.int64)[:, None] * D + o_d, (o_c < end)[:, None] & (o_d < D), 0.0)
        de = _dot(w, v, de)
    tl.store(p_out, de, m_out)


class Operands(NamedTuple):
    """Features as the kernels read them: packed, padded with zeros, and scaled by powers of two, which rounds nothing.

    v and e have norms of about 1 (in `damsm`, whose similarities depend on the norms, an image's longest v has), so
    that float16 holds every product; the similarity is v_scale * e_scale * <v, e>. P is R and Q is D, padded.
    """

    v: Tensor  # (I, P, Q)
    e: Tensor  # (M, Q), M = J * T; keywords that are none are last
    v_scale: Tensor  # (I, P) float32; so are all below, unless it is said
    e_scale: Tensor  # (M,)
    c_scale: Tensor  # (I,) the context in units of what the kernels build
    reach: Tensor  # (M,) |e| in the cosine
    v_shrunk: Tensor  # (I, R, 1) v over the region
    e_shrunk: Tensor  # (M, 1)
    v_radial: Tensor  # (I, R, 1) the share of a gradient along v that normalising takes away is this * v <v, .>
    e_radial: Tensor  # (M, 1)
    start: Tensor  # (J + 1,) int32: keywords [start[j], start[j + 1]) are caption j's
    caption: Tensor  # (M,) int32
    order: Tensor  # (M,) int64: where in (J * T) a packed keyword came from


class Blocks(NamedTuple):
    """Sizes of the kernels' tiles."""

    forward: dict[str, int]
    weights: dict[str, int]
    regions: dict[str, int]
    keywords: dict[str, int]


def operands(regions: Tensor, keywords: Tensor, mask: Tensor, variant: str) -> Operands:
    """Pack regions (I, R, D) and keywords (J, T, D) with mask (J, T); no value travels to the host."""
    images, count, features = regions.shape
    lengths, flat = mask.sum(dim=1), mask.flatten()
    order = torch.argsort(~flat, stable=True)
    # What stands where no keyword is reaches nothing, be it NaN.
    real = keywords.flatten(0, 1).masked_fill(~flat[:, None], 0.0)[order]
    v_norm, e_norm = _norm(regions), _norm(real)
    if variant == "xmc":
        v_radial, e_radial = v_norm >= NORM_FLOOR, e_norm >= NORM_FLOOR
        v_floored, e_floored = v_norm.clamp(min=NORM_FLOOR), e_norm.clamp(min=NORM_FLOOR)
        reach, v_shrunk, e_shrunk = e_norm / e_floored, _power_of_two(v_floored), _power_of_two(e_floored)
        v_scale, e_scale = v_shrunk / v_floored, e_shrunk / e_floored
        c_scale = v_norm.new_ones(images)
    else:
        v_radial, e_radial = torch.zeros_like(v_norm), torch.zeros_like(e_norm)
        v_shrunk = _power_of_two(v_norm.amax(dim=1, keepdim=True)).expand_as(v_norm)
        reach, e_shrunk = e_norm, _power_of_two(e_norm)
        v_scale, e_scale, c_scale = v_shrunk, e_shrunk, v_shrunk[:, 0, 0].contiguous()
    padded, width = _pad(count, 16), _pad_features(features)
    return Operands(
        v=_scaled(regions, v_shrunk, (images, padded, width)),
        e=_scaled(real, e_shrunk, (len(real), width)),
        v_scale=torch.nn.functional.pad(v_scale[:, :, 0], (0, padded - count)).contiguous(),
        e_scale=e_scale.flatten(),
        c_scale=c_scale,
        reach=reach.flatten(),
        v_shrunk=v_shrunk,
        e_shrunk=e_shrunk,
        v_radial=v_radial * v_scale.square(),
        e_radial=e_radial * e_scale.square(),
        start=torch.nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32),
        caption=(order // mask.shape[1]).to(torch.int32),
        order=order,
    )


def forward(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T), and what the backward pass needs.

    That is, (I, J * T) for packed keywords and zero behind the last: cosines, log-sum-exps of the attention, |c|^2. All
    are float32.
    """
    images, captions = len(regions), len(keywords)
    scores = torch.empty(images, captions, dtype=torch.float32, device=regions.device)
    cosine, lse, square = (
        torch.zeros(images, mask.numel(), dtype=torch.float32, device=regions.device) for _ in range(3)
    )
    if scores.numel():
        given = operands(regions, keywords, mask, variant)
        _attend(given, regions.shape[1], mask.shape, variant, gamma_attention, cosine, lse, square, None)
        caption = triton.next_power_of_2(mask.shape[1])
        block_j = max(1, 1024 // caption)
        divisor = gamma_pooling if variant == "xmc" else 1.0
        pool_kernel[triton.cdiv(captions, block_j), images](
            cosine, given.start, scores, captions, mask.numel(), gamma_pooling, divisor, caption, block_j,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return scores, cosine, lse, square


def backward(
    dscores: Tensor, regions: Tensor, keywords: Tensor, mask: Tensor, scores: Tensor, cosine: Tensor, lse: Tensor,
    square: Tensor, variant: str, gamma_attention: float, gamma_pooling: float, for_regions: bool, for_keywords: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of regions and keywords, in their dtype, given that of the scores (I, J) in float32.

    An empty tensor takes the place of one that is not wanted.
    """
    dregions = torch.empty(regions.shape if for_regions else (0,), dtype=regions.dtype, device=regions.device)
    dkeywords = torch.empty(keywords.shape if for_keywords else (0,), dtype=keywords.dtype, device=keywords.device)
    if not dscores.numel():
        return dregions.zero_(), dkeywords.zero_()
    given = operands(regions, keywords, mask, variant)
    # float16 has no room for small gradients: the largest becomes 1 on the way through.
    largest = dscores.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    dscores = dscores / largest
    (images, padded, width), rows = given.v.shape, len(given.e)
    tiles = _blocks(given, variant, mask.shape[1]).keywords
    group = max(1, min(images, WORKSPACE // (rows * (2 * padded + width) * regions.element_size())))
    de_tiles = triton.cdiv(rows, tiles["BLOCK_M"]) * triton.cdiv(width, tiles["BLOCK_D"])
    parts = min(group, triton.cdiv(PROGRAMS, de_tiles))
    de = torch.zeros(parts, rows, width, dtype=torch.float32, device=regions.device) if for_keywords else None
    dv = torch.empty(group, padded, width, dtype=torch.float32, device=regions.device) if for_regions else None
    radial = torch.zeros(rows, dtype=torch.float32, device=regions.device)
    for i in range(0, images, group):
        s = slice(i, i + group)
        share = given._replace(v=given.v[s], v_scale=given.v_scale[s], c_scale=given.c_scale[s])
        coefficients = _coefficients(
            share, mask.shape, variant, gamma_pooling, dscores[s], scores[s], cosine[s], square[s], radial
        )
        _regions_and_keywords(
            share, regions.shape[1], mask.shape, variant, gamma_attention, lse[s], coefficients, dv, de
        )
        if dv is not None:
            own = dv[: len(share.v)]
            dregions[s] = _unscaled(own, share.v, given.v_shrunk[s], given.v_radial[s], regions.shape[2]) * largest
    if de is not None:
        de, norm = de.sum(dim=0), given.e.float().square().sum(dim=1, keepdim=True).clamp(min=1e-30)
        de -= given.e * (radial[:, None] / norm)
        de = _unscaled(de, given.e, given.e_shrunk, given.e_radial, keywords.shape[2]) * largest
        dkeywords.flatten(0, 1)[given.order] = de.to(keywords.dtype)
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
    forward_kernel[grid](
        given.e, given.v, given.e_scale, given.v_scale, given.start, given.reach, given.c_scale,
        cosine, lse, square, context, captions, len(given.e), regions, padded, gamma,
        D=width, CAPTION=caption, CONTEXT=context is not None, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def _coefficients(
    given: Operands, shape: torch.Size, variant: str, gamma: float,
    dscores: Tensor, scores: Tensor, cosine: Tensor, square: Tensor, radial: Tensor,
) -> Tensor:  # fmt: skip
    """What the cosines, numerators and squared norms of a group get, (3, I, M); radial (M,) is added to."""
    out = torch.empty(3, len(given.v), len(given.e), dtype=torch.float32, device=radial.device)
    divisor = gamma if variant == "xmc" else 1.0
    coefficients_kernel[(triton.cdiv(len(given.e), 128),)](
        dscores, scores, cosine, square, given.caption, given.start, given.reach, given.c_scale, *out, radial,
        shape[0], len(given.e), len(given.v), gamma, divisor, 128, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _regions_and_keywords(
    given: Operands, regions: int, shape: torch.Size, variant: str, gamma: float, lse: Tensor, coefficients: Tensor,
    dv: Tensor | None, de: Tensor | None,
) -> None:  # fmt: skip
    """Fill dv (I or more, P, Q) with the gradient of a group's v, and add that of e to de (parts, M, Q), in float32."""
    (images, padded, width), (captions, count), rows = given.v.shape, shape, len(given.e)
    tiles = _blocks(given, variant, count)
    context, w, b = (
        torch.empty(rows, images, size, dtype=given.v.dtype, device=given.v.device) for size in (width, padded, padded)
    )
    square = torch.empty_like(lse)
    _attend(given, regions, shape, variant, gamma, None, None, square, context)
    grid = _row_tiles(shape, variant, tiles.weights["BLOCK_M"]), triton.cdiv(padded, tiles.weights["BLOCK_R"]), images
    weights_kernel[grid](
        given.e, given.v, context, given.e_scale, given.v_scale, given.start, lse, square, *coefficients, w, b,
        captions, rows, regions, padded, gamma,
        D=width, CAPTION=caption_rows(variant, count), enable_fp_fusion=True, **tiles.weights,
    )  # fmt: skip
    if dv is not None:
        grid = triton.cdiv(padded, tiles.regions["BLOCK_R"]), triton.cdiv(width, tiles.regions["BLOCK_D"]), images
        regions_kernel[grid](
            w, given.e, b, context, given.start, dv, captions, padded, D=width, enable_fp_fusion=True, **tiles.regions
        )
    if de is not None:
        grid = triton.cdiv(rows, tiles.keywords["BLOCK_M"]), triton.cdiv(width, tiles.keywords["BLOCK_D"]), len(de)
        keywords_kernel[grid](
            w, given.v, given.start, de, captions, rows, images * padded, triton.cdiv(images, len(de)) * padded,
            D=width, enable_fp_fusion=True, **tiles.keywords,
        )  # fmt: skip


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
            weights=wide,
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


def _pad(size: int, multiple: int) -> int:
    return triton.cdiv(size, multiple) * multiple


def _pad_features(features: int) -> int:
    """A power of two up to 256, then a multiple of 128."""
    return max(16, triton.next_power_of_2(features)) if features <= 256 else _pad(features, 128)


def _norm(x: Tensor) -> Tensor:
    """|x| along the last dimension in float32; NaN in the place of infinity, for x / infinity would be 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.masked_fill(norm == torch.inf, torch.nan)


def _power_of_two(norm: Tensor) -> Tensor:
    """The power of two next above the norm; NaN for NaN."""
    power = torch.ldexp(torch.ones_like(norm), torch.frexp(norm).exponent)
    return power.masked_fill(norm.isnan(), torch.nan)


def _scaled(x: Tensor, shrunk: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x / shrunk in x's dtype, padded with zeros."""
    out = x.new_zeros(shape)
    torch.div(x, shrunk, out=out[..., : x.shape[-2], : x.shape[-1]])
    return out


def _unscaled(gradient: Tensor, x: Tensor, shrunk: Tensor, radial: Tensor, features: int) -> Tensor:
    """The gradient of features before `operands` made x of them: (..., n, D) of a gradient (..., P, Q)."""
    gradient, x = (t[..., : radial.shape[-2], :features] for t in (gradient, x))
    return (gradient - radial * x * (x * gradient).sum(dim=-1, keepdim=True)) / shrunk
