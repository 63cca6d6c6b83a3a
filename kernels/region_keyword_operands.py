"""Features as the region-keyword kernels read them, and gradients back from there: a launch each for regions and
keywords.

M counts keywords, those of all captions, I images, J captions, T keywords of a caption, R regions, D features; P is R
and Q is D, padded with zeros. No value travels to the host.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: XMC-GAN's floor of a norm.
NORM_FLOOR: tl.constexpr = tl.constexpr(1e-6)
#: The interpreter multiplies the bits of bfloat16 as integers, so there dots are of float32; and it cuts float32 off to
#: bfloat16 where a GPU rounds to the nearest.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
#: Rows of a tile, and the most features that it has at once.
ROWS, MOST_FEATURES = 16, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


class Operands(NamedTuple):
    """Packed features, scaled by powers of two, which rounds nothing.

    v and e have norms of about 1 (in `damsm`, whose similarities depend on the norms, an image's longest v has), so
    that float16 holds every product; the similarity is scale * scale * <v, e>. Of a gradient along a feature x,
    normalising takes away radial * x <x, .>.
    """

    v: Tensor  # (I, P, Q)
    e: Tensor  # (M, Q); keywords that are none are last, zeros
    of_regions: Tensor  # (3, I, P) float32: scale, inverse of the power of two, radial
    of_keywords: Tensor  # (4, M) float32: the same, and |e| in the cosine
    places: Tensor  # (J + 1 + 2 M,) int32: where each caption starts; captions of keywords; where in (J, T) they were

    def split_places(self, captions: int) -> tuple[Tensor, Tensor, Tensor]:
        """(J + 1,) caption j has the keywords [start[j], start[j + 1]); (M,) the captions; (M,) the old places."""
        start, caption, order = self.places.split([captions + 1, len(self.e), len(self.e)])
        return start, caption, order


@triton.jit
def to_nearest(x, dtype: tl.constexpr):
    """x in a dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)


@triton.jit
def _norm(square):
    """The norm of a squared one; NaN in the place of infinity, for x / infinity would be 0."""
    return tl.where(square < float("inf"), tl.sqrt_rn(square), float("nan"))


@triton.jit
def _powers_of_two(norm):
    """The power of two next above the norm, 1 for 0, and its inverse; NaN for NaN. Norms are below 2^65."""
    exponent = (norm.to(tl.int32, bitcast=True) >> 23) + 1
    exponent = tl.where(norm == 0.0, 127, exponent)
    power, inverse = exponent << 23, (254 - exponent) << 23
    nan = tl.where(norm == norm, 0.0, norm)
    return power.to(tl.float32, bitcast=True) + nan, inverse.to(tl.float32, bitcast=True) + nan


@triton.jit
def _scales(norm, longest, XMC: tl.constexpr):
    """scale, inverse power of two, radial and reach of features with these norms; longest: that the power is of."""
    if XMC:
        floored = tl.where(norm < NORM_FLOOR, NORM_FLOOR, norm)
        power, inverse = _powers_of_two(floored)
        scale = power / floored
        return scale, inverse, tl.where(norm < NORM_FLOOR, 0.0, scale * scale), norm / floored
    else:
        power, inverse = _powers_of_two(longest)
        return power, inverse, tl.zeros_like(norm), norm


@triton.jit
def _squares(p_rows, stride, m, FEATURES: tl.constexpr, BLOCK_D: tl.constexpr):
    """The squared norms of rows that begin at p_rows (n, 1)."""
    total = tl.zeros((p_rows.shape[0],), tl.float32)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(p_rows + o_d * stride, m[:, None] & (o_d < FEATURES), 0.0).to(tl.float32)
        total += tl.sum(x * x, 1)
    return total


@triton.jit
def _write_scaled(
    p_rows, stride, m, inverse, p_out, m_out, FEATURES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write rows times their inverse power of two, and zeros where they end."""
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(p_rows + o_d * stride, m[:, None] & (o_d < FEATURES), 0.0).to(tl.float32)
        tl.store(p_out + o_d, (x * inverse[:, None]).to(p_out.dtype.element_ty), m_out[:, None] & (o_d < D))


@triton.jit
def pack_regions_kernel(
    p_regions, p_v, p_scale, p_inverse, p_radial, regions, padded, stride_i, stride_r, stride_d,
    FEATURES: tl.constexpr, D: tl.constexpr, XMC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(1).to(tl.int64)
    p_regions += i * stride_i
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = r < regions
    p_rows = p_regions + r.to(tl.int64)[:, None] * stride_r
    norm = _norm(_squares(p_rows, stride_d, m, FEATURES, BLOCK_D))
    longest = 0.0
    if not XMC:
        spoilt = 0
        for first in range(0, regions, ROWS):
            o_r = first + tl.arange(0, ROWS)
            p_others = p_regions + o_r.to(tl.int64)[:, None] * stride_r
            others = _norm(_squares(p_others, stride_d, o_r < regions, FEATURES, BLOCK_D))
            spoilt += tl.sum((others != others).to(tl.int32), 0)
            longest = tl.maximum(longest, tl.max(others, 0))
        longest = tl.where(spoilt > 0, float("nan"), longest)
    scale, inverse, radial, _ = _scales(norm, longest + tl.zeros_like(norm), XMC)
    p_out, m_out = p_v + (i * padded + r)[:, None] * D, r < padded
    _write_scaled(p_rows, stride_d, m, inverse, p_out, m_out, FEATURES, D, BLOCK_D)
    tl.store(p_scale + i * padded + r, tl.where(m, scale, 0.0), m_out)
    tl.store(p_inverse + i * padded + r, inverse, m_out)
    tl.store(p_radial + i * padded + r, tl.where(m, radial, 0.0), m_out)


@triton.jit
def pack_keywords_kernel(
    p_keywords, p_count, p_e, p_scale, p_inverse, p_radial, p_reach, p_start, p_caption, p_order,
    keywords, words, stride_j, stride_t, stride_d,
    FEATURES: tl.constexpr, D: tl.constexpr, XMC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """p_count: how many keywords there are up to each place of (J, T), itself included."""
    o_m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = o_m < keywords
    count, before = tl.load(p_count + o_m, there, 0), tl.load(p_count + o_m - 1, there & (o_m > 0), 0)
    m = count > before
    place = tl.where(m, before, tl.load(p_count + keywords - 1) + o_m - count)
    j, t = o_m // words, o_m % words
    p_rows = p_keywords + (j.to(tl.int64) * stride_j + t.to(tl.int64) * stride_t)[:, None]
    # What stands where no keyword is reaches nothing, be it NaN.
    norm = _norm(_squares(p_rows, stride_d, m, FEATURES, BLOCK_D))
    scale, inverse, radial, reach = _scales(norm, norm, XMC)
    _write_scaled(p_rows, stride_d, m, inverse, p_e + place.to(tl.int64)[:, None] * D, there, FEATURES, D, BLOCK_D)
    tl.store(p_scale + place, scale, there)
    tl.store(p_inverse + place, inverse, there)
    tl.store(p_radial + place, radial, there)
    tl.store(p_reach + place, reach, there)
    tl.store(p_caption + place, j, there)
    tl.store(p_order + place, o_m, there)
    tl.store(p_start + j + 1, count, there & (t == words - 1))
    tl.store(p_start + j, 0, there & (o_m == 0))


@triton.jit
def largest_or_one(p_largest):
    """What the gradients of the scores are divided by on the way through: their largest, if it is above 0 and finite.

    float16 has no room for small gradients.
    """
    largest = tl.load(p_largest)
    return tl.where((largest > 0.0) & (largest < float("inf")), largest, 1.0)


@triton.jit
def _feature_and_gradient(p_x, p_gradient, m, along, parts, part_stride):
    """x, and the sum of the parts of its gradient, in their order, without along * x."""
    x = tl.load(p_x, m, 0.0).to(tl.float32)
    gradient = -along[:, None] * x
    for part in range(0, parts):
        gradient += tl.load(p_gradient + tl.cast(part, tl.int64) * part_stride, m, 0.0)
    return x, gradient


@triton.jit
def _write_unscaled(
    p_x, p_gradient, p_out, m, m_out, along, radial, factor, parts, part_stride,
    FEATURES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write factor * (g - radial x <x, g>), the gradient before features were scaled, of g as in the function above."""
    inside = tl.zeros_like(along)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m_d = m[:, None] & (o_d < FEATURES)
        x, gradient = _feature_and_gradient(p_x + o_d, p_gradient + o_d, m_d, along, parts, part_stride)
        inside += tl.sum(x * gradient, 1)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m_d = m[:, None] & (o_d < FEATURES)
        x, gradient = _feature_and_gradient(p_x + o_d, p_gradient + o_d, m_d, along, parts, part_stride)
        gradient = (gradient - (radial * inside)[:, None] * x) * factor[:, None]
        tl.store(p_out + o_d, to_nearest(gradient, p_out.dtype.element_ty), m_out[:, None] & (o_d < FEATURES))


@triton.jit
def unpack_regions_kernel(
    p_dv, p_v, p_inverse, p_radial, p_largest, p_dregions, regions, padded,
    FEATURES: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m, o_row = r < regions, i * padded + r
    factor = tl.load(p_inverse + o_row, m, 0.0) * largest_or_one(p_largest)
    radial = tl.load(p_radial + o_row, m, 0.0)
    p_out = p_dregions + (i * regions + r)[:, None] * FEATURES
    _write_unscaled(
        p_v + o_row[:, None] * D, p_dv + o_row[:, None] * D, p_out, m, m, tl.zeros_like(radial), radial, factor, 1, 0,
        FEATURES, BLOCK_D,
    )  # fmt: skip


@triton.jit
def unpack_keywords_kernel(
    p_de, p_e, p_inverse, p_radial, p_norms, p_start, p_order, p_largest, p_dkeywords,
    captions, keywords, images, parts,
    FEATURES: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """p_norms: (I, M), what log(1 / |e|) in the cosine gets of each image."""
    o_m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there, m = o_m < keywords, o_m < tl.load(p_start + captions)
    along = tl.zeros((ROWS,), tl.float32)
    for i in range(0, images):
        along += tl.load(p_norms + tl.cast(i, tl.int64) * keywords + o_m, m, 0.0)
    p_rows = p_e + o_m.to(tl.int64)[:, None] * D
    along /= tl.maximum(_squares(p_rows, 1, m, FEATURES, BLOCK_D), 1e-30)
    factor = tl.load(p_inverse + o_m, m, 0.0) * largest_or_one(p_largest)
    radial = tl.load(p_radial + o_m, m, 0.0)
    p_out = p_dkeywords + tl.load(p_order + o_m, there, 0).to(tl.int64)[:, None] * FEATURES
    p_gradient = p_de + o_m.to(tl.int64)[:, None] * D
    part_stride = tl.cast(keywords, tl.int64) * D
    _write_unscaled(
        p_rows, p_gradient, p_out, m, there, along, radial, factor, parts, part_stride, FEATURES, BLOCK_D
    )  # fmt: skip


def operands_like(regions: Tensor, keywords: Tensor) -> Operands:
    """Operands of regions (I, R, D) and keywords (J, T, D), uninitialised."""
    (images, count, features), (captions, words, _) = regions.shape, keywords.shape
    padded, width = triton.cdiv(count, 16) * 16, _padded_features(int(features))
    rows = captions * words
    device = regions.device
    return Operands(
        v=torch.empty(images, padded, width, dtype=regions.dtype, device=device),
        e=torch.empty(rows, width, dtype=regions.dtype, device=device),
        of_regions=torch.empty(3, images, padded, dtype=torch.float32, device=device),
        of_keywords=torch.empty(4, rows, dtype=torch.float32, device=device),
        places=torch.empty(captions + 1 + 2 * rows, dtype=torch.int32, device=device),
    )


def pack(regions: Tensor, keywords: Tensor, mask: Tensor, variant: str) -> Operands:
    """Operands of regions (I, R, D) and keywords (J, T, D), none of them empty, with mask (J, T)."""
    made = operands_like(regions, keywords)
    (images, count, features), words, (padded, width) = regions.shape, mask.shape[1], made.v.shape[1:]
    block_d = min(width, MOST_FEATURES)
    sizes = (features, width, variant == "xmc", ROWS, block_d)
    pack_regions_kernel[triton.cdiv(padded, ROWS), images](
        regions, made.v, *made.of_regions, count, padded, *regions.stride(), *sizes, **OPTIONS
    )
    reached = mask.flatten().cumsum(0, dtype=torch.int32)
    pack_keywords_kernel[(triton.cdiv(mask.numel(), ROWS),)](
        keywords, reached, made.e, *made.of_keywords, *made.split_places(len(mask)), mask.numel(), words,
        *keywords.stride(), *sizes, **OPTIONS,
    )  # fmt: skip
    return made


def unpack_regions(dv: Tensor, v: Tensor, of_regions: Tensor, largest: Tensor, dregions: Tensor) -> None:
    """Fill the gradient of some regions (I, R, D), contiguous, given that of v (I, P, Q) in float32."""
    (images, count, features), (padded, width) = dregions.shape, v.shape[1:]
    _, inverse, radial = of_regions
    unpack_regions_kernel[triton.cdiv(count, ROWS), images](
        dv, v, inverse, radial, largest, dregions, count, padded, features, width, ROWS, min(width, MOST_FEATURES),
        **OPTIONS,
    )  # fmt: skip


def unpack_keywords(de: Tensor, given: Operands, norms: Tensor, largest: Tensor, dkeywords: Tensor) -> None:
    """Fill the gradient of keywords (J, T, D), given parts of that of e (parts, M, Q) and of norms (I, M)."""
    captions, _, features = dkeywords.shape
    rows, width = given.e.shape
    _, inverse, radial, _ = given.of_keywords
    start, _, order = given.split_places(captions)
    unpack_keywords_kernel[(triton.cdiv(rows, ROWS),)](
        de, given.e, inverse, radial, norms, start, order, largest, dkeywords, captions, rows, len(norms), len(de),
        features, width, ROWS, min(width, MOST_FEATURES), **OPTIONS,
    )  # fmt: skip


def _padded_features(features: int) -> int:
    """A power of two up to 256, then a multiple of 128."""
    return max(16, triton.next_power_of_2(features)) if features <= 256 else triton.cdiv(features, 128) * 128
