"""Region-keyword scores in PyTorch, arranged so that the attention of a few images at a time is all there ever is.

Only real keywords are computed: they are packed to the front, captions of equal length side by side, so that a softmax
over a caption's keywords is one over a dimension. Images come in groups and packed keywords in chunks, as many as fill
a buffer (`BUFFER`). M counts the keywords of a chunk, G the images of a group, R regions, D features; what belongs to
them is (G, M, R), and every pass over it goes image by image, products of matrices included: so a thread meets what it
wrote itself, in its own cache. Where passes were divided among threads in several ways, some processes on 2 CPU cores
took 1.2 to 1.4 times as long as others.

With s the similarities, a the attention, n = sum_r a s and q = |c|^2 of the context c = sum_r a v_r, a cosine is
n / (sqrt(q) |e|). With rho = n / q, what it sends back is, times d loss / d n,

    da_r = s_r - rho <c, v_r>        whose mean under a is n - rho q = 0, so that the softmax sends back a da alone
    dv_r = a_r (e - rho c)           beside what s sends

The squared norm takes a Gram matrix of the regions, q = sum_r a_r (G a)_r and <c, v_r> = (G a)_r, or the contexts
themselves, whichever is less work. In multiply-adds, in units of M x R x D an image: forward 1 + R/D + R/M or 2,
backward 3 + 2 R/D + 2 R/M or 6. The backward pass finds s and c, or G a, of the first images as the forward left them,
as many as fit (`KEPT`): 1 + R/D or 2 less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.ops.reference import COSINE_FLOOR, NORM_FLOOR, accumulating, finite_or_nan, pool, squared_norm

#: Bytes of one (G, M, R) buffer, of which there are three or four. On a CPU, for each thread, its second-level cache or
#: so; on a GPU what fills it.
BUFFER, BUFFER_CUDA = 2**20, 64 * 2**20
#: Bytes that the forward pass may leave on a CPU, so that the backward pass need not compute them again; on a GPU
#: memory is dearer. Tensors of 32 MiB or more never get pages from glibc that have been used before, and new pages cost
#: what is saved.
KEPT = 24 * 2**20
#: The Gram matrix is taken where R/D + R/N, N = J * T being all keywords, is less than this. By the counts above it
#: would be 1 and 1.5; on 2 CPU cores both took the same time at 1 and, backward, at 1.4.
GRAM_FORWARD, GRAM_BACKWARD = 1.0, 1.4


def region_keyword_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T); differentiable once."""
    keep = torch.is_grad_enabled() and (regions.requires_grad or keywords.requires_grad)
    settings = variant, gamma_attention, gamma_pooling, _threads(regions)
    return region_keyword_blocks(regions, keywords, mask, *settings, keep)[0]


@torch.library.custom_op("fastt2i::region_keyword_blocks", mutates_args=())
def region_keyword_blocks(
    regions: Tensor,
    keywords: Tensor,
    mask: Tensor,
    variant: str,
    gamma_attention: float,
    gamma_pooling: float,
    threads: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (I, J), and for the gradient cosines and |c|^2 of packed keywords, (I, J * T), zero beyond them; and, if
    asked to keep them, similarities and contexts of as many images as `KEPT` has room for. These lie as the number of
    threads has divided them, so the backward pass is told the same number, whatever it runs in."""
    cosine, square, unpacked = (regions.new_zeros(len(regions), mask.numel(), dtype=_wide(regions)) for _ in range(3))
    kept = _room(regions, mask, keep)
    with torch.autocast(regions.device.type, enabled=False):
        packed = _pack(keywords, mask, variant, gamma_attention)
        if count := len(packed.slots):
            spaces = _Spaces(packed.features)
            numerator, squared = cosine[:, :count], square[:, :count]
            for group in _groups(regions, packed, variant, threads, kept, GRAM_FORWARD):
                _compare(group, packed, spaces, variant, gamma_attention, numerator, squared)
            squared.copy_(finite_or_nan(squared))
            numerator.div_(_norms(squared, packed).clamp_(min=COSINE_FLOOR).mul_(packed.factor))
            unpacked[:, packed.slots] = numerator
        scores = pool(gamma_pooling * unpacked.unflatten(1, mask.shape), mask)
        scores = scores / gamma_pooling if variant == "xmc" else scores
    return scores, cosine, square, kept


@torch.library.custom_op("fastt2i::region_keyword_blocks_backward", mutates_args=())
def region_keyword_blocks_backward(
    dscores: Tensor,
    regions: Tensor,
    keywords: Tensor,
    mask: Tensor,
    scores: Tensor,
    cosine: Tensor,
    square: Tensor,
    kept: Tensor,
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
        packed = _pack(keywords, mask, variant, gamma_attention)
        if not len(packed.slots) or not len(regions):
            return dregions, dkeywords
        received = _receive(dscores, scores, cosine, square, packed, variant, gamma_pooling)
        de = torch.zeros_like(packed.features) if for_keywords else None
        spaces = _Spaces(packed.features)
        for group in _groups(regions, packed, variant, threads, kept, GRAM_BACKWARD):
            dv = spaces.take("dv", group.features.shape).zero_() if for_regions else None
            _send_back(group, packed, spaces, received, variant, gamma_attention, dv, de)
            if dv is not None:
                dregions[group.images] = _unscaled(dv, group.features, group.scale, group.moves).to(regions.dtype)
        if de is not None:
            # Similarities were computed with gamma * e; and a keyword's own norm is in its cosine's denominator.
            unit = packed.features / packed.factor
            de.addcmul_(unit, (received.radial / packed.norm.square().clamp(min=_tiny(de)))[:, None], value=-1)
            de = _unscaled(de, unit, packed.scale, packed.moves)
            dkeywords.flatten(0, 1)[packed.slots] = de.to(keywords.dtype)
    return dregions, dkeywords


@region_keyword_blocks.register_fake
def _(regions: Tensor, keywords: Tensor, mask: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = regions.new_empty(len(regions), len(keywords), dtype=_wide(regions))
    cosine, square = (regions.new_empty(len(regions), mask.numel(), dtype=_wide(regions)) for _ in range(2))
    return scores, cosine, square, _room(regions, mask, others[-1])


@region_keyword_blocks_backward.register_fake
def _(dscores: Tensor, regions: Tensor, keywords: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, for_regions, for_keywords = others
    return (
        regions.new_empty(regions.shape if for_regions else 0),
        keywords.new_empty(keywords.shape if for_keywords else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    regions, keywords, mask, *ctx.settings, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros are written for these, as large as they are
    ctx.save_for_backward(regions, keywords, mask, *output)


def _differentiate(ctx: Any, dscores: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if dscores is None:
        return 8 * (None,)
    for_regions, for_keywords = ctx.needs_input_grad[:2]
    dregions, dkeywords = region_keyword_blocks_backward(
        dscores, *ctx.saved_tensors, *ctx.settings, for_regions, for_keywords
    )
    return dregions if for_regions else None, dkeywords if for_keywords else None, *6 * (None,)


def _refuse(ctx: Any, *unused: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "region_keyword_scores: with impl='torch' it differentiates once; for a second derivative use impl='reference'"
    )


region_keyword_blocks.register_autograd(_differentiate, setup_context=_save)
region_keyword_blocks_backward.register_autograd(_refuse)


class _Packed(NamedTuple):
    """Real keywords, captions in order of their lengths."""

    slots: Tensor  # (N,) int64: where in (J * T) each came from
    captions: Tensor  # (N,) int64
    features: Tensor  # (N, D), times `factor`
    scale: Tensor  # (N, 1) what normalising multiplied by
    moves: Tensor  # (N, 1) bool: whether it did divide by the norm, and not by its floor
    norm: Tensor  # (N,) after normalising
    factor: float  # gamma_attention for `xmc`, where it can stand before the similarities; else 1
    lengths: list[int]  # of all captions, ascending
    places: int  # J * T


class _Group(NamedTuple):
    """Images whose attention is computed together."""

    images: slice
    features: Tensor  # (G, R, D)
    scale: Tensor  # (G, R, 1)
    moves: Tensor  # (G, R, 1) bool
    chunks: list[_Chunk]
    by_gram: bool  # whether products of the attention are with Gram matrices, G a, or contexts
    kept: Tensor | None  # G * N * (R + R or D), what the forward pass left


class _Received(NamedTuple):
    """What arrives at every cosine, (I, N)."""

    dnumerator: Tensor
    rho: Tensor  # n / q, times -`factor`; 0 where the floor stands for the norms
    mean: Tensor  # of da under the attention, times `factor`: not 0 only where the floor stands for the norms
    floored: bool  # whether it does anywhere
    radial: Tensor  # (N,) what log(1 / |e|) gets


class _Chunk(NamedTuple):
    """Packed keywords, and how many captions of which length they are."""

    rows: slice
    captions: list[tuple[int, int]]


def _pack(keywords: Tensor, mask: Tensor, variant: str, gamma: float) -> _Packed:
    count = mask.shape[1]
    lengths, order = mask.sum(dim=1).sort(stable=True)
    slots = (count * order[:, None] + torch.arange(count, device=mask.device))[mask[order]]
    features, scale, moves = _scaled(accumulating(keywords.flatten(0, 1)[slots]), variant)
    norm = squared_norm(features)[:, 0].clamp(min=_tiny(features)).sqrt()
    factor = gamma if variant == "xmc" else 1.0
    features.mul_(factor)
    return _Packed(slots, slots // count, features, scale, moves, norm, factor, lengths.tolist(), mask.numel())


def _room(regions: Tensor, mask: Tensor, keep: bool) -> Tensor:
    """A flat tensor for what the forward pass leaves."""
    dtype = _wide(regions)
    most = KEPT // dtype.itemsize if keep and regions.device.type != "cuda" else 0
    return regions.new_empty(min(len(regions) * mask.numel() * _width(regions, mask.numel()), most), dtype=dtype)


def _width(regions: Tensor, keywords: int) -> int:
    """Numbers that the forward pass has for a keyword of an image: similarities, and a context or G a."""
    _, count, features = regions.shape
    return count + (count if _gram_costs(regions, keywords) < GRAM_FORWARD else features)


def _groups(
    regions: Tensor, packed: _Packed, variant: str, threads: int, kept: Tensor, gram: float
) -> Iterator[_Group]:
    images, count, features = regions.shape
    largest = _wide(regions).itemsize * count * max(count, features, len(packed.slots))
    most = max(1, _buffer(regions) // largest)  # images of a thread
    turns = max(1, -(-images // (threads * most)))
    size = threads * max(1, -(-images // (threads * turns)))  # the same for all groups, as far as it goes
    # Chunks that fill a buffer with a group's images, each about as long as the others.
    keywords = len(packed.slots)
    fitting = max(1, threads * _buffer(regions) // (_wide(regions).itemsize * size * count))
    chunks = list(_chunks(packed.lengths, -(-keywords // -(-keywords // fitting))))
    width = keywords * _width(regions, packed.places)
    for start in range(0, images, size):
        chosen = slice(start, min(start + size, images))
        found = kept[chosen.start * width : chosen.stop * width] if chosen.stop * width <= len(kept) else None
        yield _Group(
            chosen,
            *_scaled(accumulating(regions[chosen]).contiguous(), variant),
            chunks,
            by_gram=_gram_costs(regions, packed.places) < (gram if found is None else GRAM_FORWARD),
            kept=found,
        )


def _chunks(lengths: Iterable[int], most: int) -> Iterator[_Chunk]:
    """Chunks of at most `most` keywords (one caption at least), whose captions are whole."""
    captions: list[tuple[int, int]] = []
    start = rows = 0
    for length, same in groupby(length for length in lengths if length):
        left = len(list(same))
        while left:
            fitting = (most - rows) // length
            if not fitting and rows:
                yield _Chunk(slice(start, start + rows), captions)
                captions, start, rows = [], start + rows, 0
                continue
            taken = min(left, max(1, fitting))
            captions.append((taken, length))
            rows, left = rows + taken * length, left - taken
    yield _Chunk(slice(start, start + rows), captions)


def _compare(
    group: _Group, packed: _Packed, spaces: _Spaces, variant: str, gamma: float, numerator_IN: Tensor, square_IN: Tensor
) -> None:
    """Fill in, for a group's images, sum_r a s times `packed.factor`, and |c|^2."""
    v_GRD = group.features
    gram = _gram(v_GRD, spaces) if group.by_gram else None
    for chunk in group.chunks:
        s, c = _products_of(group, chunk, spaces)
        a = spaces.take("a", s.shape)
        torch.bmm(_for_each(packed.features[chunk.rows], s), v_GRD.mT, out=s)
        _attend(s, chunk, variant, gamma, spaces.take("other", s.shape), a)
        torch.bmm(a, v_GRD if gram is None else gram, out=c)
        squares = torch.mul(c, c if gram is None else a, out=spaces.take("other", c.shape))
        torch.sum(squares, dim=2, out=square_IN[group.images, chunk.rows])
        torch.sum(a.mul_(s), dim=2, out=numerator_IN[group.images, chunk.rows])


def _products_of(group: _Group, chunk: _Chunk, spaces: _Spaces) -> tuple[Tensor, Tensor]:
    """Where similarities (G, M, R), times `packed.factor`, and contexts (G, M, D) or G a (G, M, R) are, or go."""
    images, count, features = group.features.shape
    rows, width = chunk.rows.stop - chunk.rows.start, count if group.by_gram else features
    if group.kept is None:
        return spaces.take("s", (images, rows, count)), spaces.take("other", (images, rows, width))
    begin, middle, end = (
        images * (chunk.rows.start * (count + width) + rows * further) for further in (0, count, count + width)
    )
    return group.kept[begin:middle].view(images, rows, count), group.kept[middle:end].view(images, rows, width)


def _norms(square: Tensor, packed: _Packed) -> Tensor:
    """|c| |e| of |c|^2 (I, N)."""
    return square.clamp(min=_tiny(square)).sqrt_().mul_(packed.norm)


def _receive(
    dscores: Tensor, scores: Tensor, cosine: Tensor, square: Tensor, packed: _Packed, variant: str, gamma: float
) -> _Received:
    divisor = gamma if variant == "xmc" else 1.0
    cosine, square = (x[:, : len(packed.slots)] for x in (cosine, square))
    scores, dscores = (x.index_select(1, packed.captions) for x in (scores, dscores))
    dcosine = scores.mul_(-divisor).add_(cosine, alpha=gamma).exp_().mul_(dscores).mul_(gamma / divisor)
    norms = _norms(square, packed)
    moves = norms >= COSINE_FLOOR
    norms = norms.clamp(min=COSINE_FLOOR)
    dnumerator, numerator = dcosine / norms, cosine * norms
    mean = torch.where(moves, 0.0, numerator)
    return _Received(
        dnumerator=dnumerator,
        rho=torch.where(moves, numerator / square.clamp(min=_tiny(square)), 0.0).mul_(-packed.factor),
        mean=mean.mul_(packed.factor),
        floored=bool(mean.any()),
        radial=torch.where(moves, dcosine * cosine, 0.0).sum(dim=0),
    )


def _send_back(
    group: _Group,
    packed: _Packed,
    spaces: _Spaces,
    received: _Received,
    variant: str,
    gamma: float,
    dv: Tensor | None,
    de: Tensor | None,
) -> None:
    """Add a group's gradients to dv (G, R, D), for its normalised regions, and to de (N, D), for all keywords."""
    v_GRD = group.features
    images, count, _ = v_GRD.shape
    gram = dgram = None
    if group.by_gram:
        gram = _gram(v_GRD, spaces) if group.kept is None else None
        dgram = spaces.take("dgram", (images, count, count)).zero_()
    for chunk in group.chunks:
        part = group.images, chunk.rows, None
        dnumerator, rho, mean = received.dnumerator[part], received.rho[part], received.mean[part]
        s, c = _products_of(group, chunk, spaces)
        a, turned, da = (spaces.take(name, s.shape) for name in ("a", "turned", "s"))
        first = spaces.take("first", s.shape) if variant == "damsm" else turned
        if group.kept is None:
            torch.bmm(_for_each(packed.features[chunk.rows], s), v_GRD.mT, out=s)
        _attend(s, chunk, variant, gamma, first, a, turned)
        if group.kept is None:  # s is da
            torch.mul(a, rho, out=turned)
            if gram is not None:
                da.baddbmm_(turned, gram)
            else:
                da.baddbmm_(torch.bmm(turned, v_GRD, out=c), v_GRD.mT)
        elif group.by_gram:
            torch.mul(a, rho, out=turned)
            torch.addcmul(s, c, rho, out=da)
        else:
            c = torch.mul(c, rho, out=spaces.take("other", c.shape))
            torch.bmm(c, v_GRD.mT, out=da).add_(s)
        a.mul_(dnumerator)
        if dgram is not None:
            dgram.baddbmm_(a.mT, turned)
        elif dv is not None:
            dv.baddbmm_(a.mT, c, alpha=1 / packed.factor)
        if received.floored:
            da.sub_(mean)
        if variant == "xmc":
            w = torch.addcmul(a, a, da, out=da)
        else:
            w = torch.add(a, _through_first(da.mul_(a), first, chunk), alpha=gamma, out=da)
        if dv is not None:
            dv.baddbmm_(w.mT, _for_each(packed.features[chunk.rows], w), alpha=1 / packed.factor)
        if de is not None:
            de[chunk.rows] += _over_images(w, v_GRD, spaces)
    if dv is not None and dgram is not None:
        dv.baddbmm_(dgram, v_GRD, alpha=1 / packed.factor)


def _attend(
    s: Tensor, chunk: _Chunk, variant: str, gamma: float, first: Tensor, a: Tensor, spare: Tensor | None = None
) -> None:
    """Fill a with the attention of similarities s; `first`, for `damsm`, with the softmax over keywords, unless there
    is no spare buffer."""
    if variant == "xmc":
        torch.softmax(s, dim=2, out=a)
        return
    for ours, theirs in zip(_by_caption(s, chunk), _by_caption(first, chunk), strict=True):
        torch.softmax(ours, dim=2, out=theirs)
    torch.softmax(torch.mul(first, gamma, out=first if spare is None else spare), dim=2, out=a)


def _through_first(dfirst: Tensor, first: Tensor, chunk: _Chunk) -> Tensor:
    """What the similarities get from the softmax over keywords that gave `first`, in place."""
    d = dfirst.mul_(first)
    for ours, theirs in zip(_by_caption(d, chunk), _by_caption(first, chunk), strict=True):
        ours.addcmul_(theirs, ours.sum(dim=2, keepdim=True), value=-1)
    return d


def _by_caption(x: Tensor, chunk: _Chunk) -> Iterator[Tensor]:
    """Views (G, captions, length, R) of x (G, M, R), one for each length."""
    start = 0
    for captions, length in chunk.captions:
        yield x[:, start : start + captions * length].unflatten(1, (captions, length))
        start += captions * length


def _for_each(keywords: Tensor, like: Tensor) -> Tensor:
    """Keywords (M, D), the same for each image of a group: (G, M, D)."""
    return keywords.expand(len(like), *keywords.shape)


def _over_images(w: Tensor, v_GRD: Tensor, spaces: _Spaces) -> Tensor:
    """The sum over images of w (G, M, R) times v (G, R, D): (M, D)."""
    # Each part is summed by itself, at the same time as the others.
    parts = len(w) if w.device.type == "cuda" else math.gcd(len(w), _threads(w))
    w, v = (x.unflatten(0, (parts, -1)) for x in (w, v_GRD))
    sums = torch.bmm(w[:, 0], v[:, 0], out=spaces.take("sums", (parts, w.shape[2], v.shape[3])))
    for image in range(1, w.shape[1]):
        sums.baddbmm_(w[:, image], v[:, image])
    return sums.sum(dim=0)


class _Spaces:
    """Memory that groups and chunks take turns in: to touch new memory costs more than to compute in it."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape, holding anything; only one of a name is in use at a time."""
        size = math.prod(shape)
        if name not in self._flat or len(self._flat[name]) < size:
            self._flat[name] = self._like.new_empty(size)
        return self._flat[name][:size].view(shape)


def _gram(v_GRD: Tensor, spaces: _Spaces) -> Tensor:
    images, count, _ = v_GRD.shape
    return torch.bmm(v_GRD, v_GRD.mT, out=spaces.take("gram", (images, count, count)))


def _scaled(x: Tensor, variant: str) -> tuple[Tensor, Tensor, Tensor]:
    """x as the similarities take it, what it was multiplied by, and whether that moves with its norm."""
    if variant == "damsm":
        one = x.new_ones(()).expand(*x.shape[:-1], 1)
        return x.clone(), one, one.new_zeros(()).bool().expand_as(one)
    square = squared_norm(x)
    scale = square.clamp(min=NORM_FLOOR).rsqrt()
    return x * scale, scale, square >= NORM_FLOOR


def _unscaled(gradient: Tensor, scaled: Tensor, scale: Tensor, moves: Tensor) -> Tensor:
    """The gradient of x, given that of what `_scaled` made of it; in place."""
    along = torch.where(moves, (gradient * scaled).sum(dim=-1, keepdim=True), 0.0)
    return gradient.addcmul_(scaled, along, value=-1).mul_(scale)


def _gram_costs(v_GRD: Tensor, keywords: int) -> float:
    count, features = v_GRD.shape[1:]
    return count / features + count / max(1, keywords)


def _buffer(x: Tensor) -> int:
    return BUFFER_CUDA if x.device.type == "cuda" else BUFFER


def _threads(x: Tensor) -> int:
    if x.device.type == "cuda":
        return 1
    if torch.compiler.is_compiling():
        from fastt2i.ops.dispatch.compile_constants import num_threads_when_traced

        return num_threads_when_traced()
    return torch.get_num_threads()


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
