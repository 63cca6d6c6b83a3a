"""Reads colour, shape, size, position and background of the embedded set back from pixels; nothing is trained.

The picture is taken apart as `background + alpha * (colour - background)`, the same model that draws it: the border
gives the background, the distance to it a mask, the mask a centroid and an area. Each shape is then drawn at that
centroid with that area, and the one that explains the pixels best is the answer, along with the colour that fits it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.shapes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Attributes, coverage

_WORKING_SIZE = 64  # larger images are averaged down to at most twice this: enough to tell shapes, and quick
_CHUNK = 64  # images read at a time, to bound memory
_TOLERANCE = 60.0  # levels of 255 (Euclidean) from a named colour; half of the least distance between two is 45 to 50
_LEAST_CONTRAST = 40.0  # levels of 255 between object and background
_LEAST_RADIUS, _MOST_RADIUS = 0.07, 0.30  # fractions of the width; the set's own are 0.106 to 0.227
_LEAST_FIT = 0.8  # of the object's energy explained by a drawn shape; real images reach 0.99, noisy ones 0.95
_STRETCHES = (0.94, 1.0, 1.06)  # of the radius that the area gives: noise and blur spoil the area a little
_BLURS = (0.0, 0.15, 0.3)  # weights of the neighbours: as drawn, and Gaussians of about 0.55 and 0.8 px
_POSITION_TOLERANCE = 0.1  # of the width, along each axis; the set's own jitter is 0.03


class Reading(NamedTuple):
    """What was read; equal to the `Attributes` of the same values. None where the image does not say."""

    color: str | None
    shape: str | None
    size: str | None
    position: str | None
    background: str | None


def read_attributes(images: NDArray[np.uint8]) -> list[Reading]:
    """Read the five attributes of each image.

    images: uint8 (N, S, S, 3), sRGB, S at least 16. An attribute that cannot be told is None; without an object only
    the background may be there. Raises ValueError on another shape or dtype.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2] or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}; they must be uint8 (N, S, S, 3)")
    if images.shape[1] < 16:
        raise ValueError(f"images are {images.shape[1]} px wide; at least 16 are needed to tell shapes apart")
    return [reading for start in range(0, len(images), _CHUNK) for reading in _read(images[start : start + _CHUNK])]


def attribute_accuracy(images: NDArray[np.uint8], expected: Sequence[Attributes]) -> dict[str, float]:
    """The fraction of images on which each attribute, and `all` of them together, is read as expected.

    images: uint8 (N, S, S, 3), N at least 1. Raises ValueError where the numbers of images and expectations differ.
    """
    return attribute_shares(right_attributes(images, expected))


def right_attributes(images: NDArray[np.uint8], expected: Sequence[Attributes]) -> NDArray[np.bool_]:
    """Which attributes are read as expected, (N, 5), of images uint8 (N, S, S, 3), N at least 1.

    Raises ValueError where the numbers of images and expectations differ.
    """
    if len(images) != len(expected) or not len(images):
        raise ValueError(
            f"there are {len(images)} images and {len(expected)} expectations; both must be the same, 1 or more"
        )
    return np.array(
        [[a == b for a, b in zip(r, e, strict=True)] for r, e in zip(read_attributes(images), expected, strict=True)]
    )


def attribute_shares(right: NDArray[np.bool_]) -> dict[str, float]:
    """The share of images on which each attribute, and `all` of them together, is right, from booleans (N, 5)."""
    return {**dict(zip(Attributes._fields, right.mean(0).tolist(), strict=True)), "all": float(right.all(1).mean())}


def _read(images: NDArray[np.uint8]) -> Iterator[Reading]:
    pixels = _average_down(images.astype(np.float32))
    size = pixels.shape[1]
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1)
    background = np.median(border, axis=1)  # (N, 3)
    # Half of the border may be spoilt before the median is; more than that is no plain background.
    plain = np.median(np.linalg.norm(border - background[:, None], axis=2), axis=1) < _LEAST_CONTRAST

    difference = pixels - background[:, None, None]
    mask = _mask(difference)
    area = mask.sum((1, 2))
    grid = np.arange(size, dtype=np.float32) + 0.5
    some = np.maximum(area, 1e-6)
    x = mask.sum(1) @ grid / some
    y = mask.sum(2) @ grid / some

    near = np.maximum(abs(grid - x[:, None])[:, None, :], abs(grid - y[:, None])[:, :, None]) < 0.32 * size
    noise = ((border - background[:, None]) ** 2).sum(2).mean(1)  # energy a pixel; no shape can explain it
    energy = (np.einsum("nhwc,nhwc->nhw", difference, difference) * near).sum((1, 2)) - noise * near.sum((1, 2))
    candidates = [
        (shape, _fit(shape, difference, energy, stretch * np.sqrt(some / _UNIT_AREA[shape]), x, y, blur))
        for shape in SHAPES
        for stretch in _STRETCHES
        for blur in _BLURS
    ]
    best = np.argmax([found.explained for _, found in candidates], axis=0)
    fit, tint, radius = (
        np.stack([getattr(f, name) for _, f in candidates])[best, np.arange(len(best))] for name in _Fit._fields
    )
    radius = radius / size
    visible = (
        plain & (np.linalg.norm(tint, axis=1) > _LEAST_CONTRAST) & (radius > _LEAST_RADIUS) & (radius < _MOST_RADIUS)
    )

    middle = float(np.prod(list(SIZES.values()))) ** 0.5  # the geometric mean: as many times small as large is times it
    for i in range(len(pixels)):
        seen = bool(visible[i])
        yield Reading(
            color=_nearest(background[i] + tint[i], COLORS, _TOLERANCE) if seen else None,
            shape=candidates[best[i]][0] if seen and fit[i] > _LEAST_FIT else None,
            size=("small" if radius[i] < middle else "large") if seen else None,
            position=_nearest(np.array([x[i], y[i]]) / size, POSITIONS, _POSITION_TOLERANCE) if seen else None,
            background=_nearest(background[i], BACKGROUNDS, _TOLERANCE) if plain[i] else None,
        )


def _average_down(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average blocks of pixels, (N, S, S, 3) -> (N, S', S', 3) with S' under 128; what fills no block is cut off."""
    factor = pixels.shape[1] // _WORKING_SIZE
    if factor < 2:
        return pixels
    size = pixels.shape[1] // factor
    cut = pixels[:, : size * factor, : size * factor]
    return cut.reshape(len(pixels), size, factor, size, factor, 3).mean((2, 4))


def _mask(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soft mask of the object, 0 to 1, (N, S, S), from the difference to the background (N, S, S, 3).

    The colour is first taken from the pixels farthest from the background, then once more from those that the first
    mask covers well. Far from any well-covered pixel the mask is 0, so that noise there has no say in the area.
    """
    distance = np.linalg.norm(difference, axis=3)
    chosen = distance >= 0.7 * np.maximum(distance.max((1, 2), keepdims=True), 1e-6)
    for _ in range(2):
        tint = (difference * chosen[..., None]).sum((1, 2)) / np.maximum(chosen.sum((1, 2)), 1)[:, None]
        energy = np.maximum((tint**2).sum(1), 1e-6)
        alpha = np.einsum("nhwc,nc->nhw", difference, tint) / energy[:, None, None]
        chosen = alpha > 0.7
    core = alpha > 0.5
    for axis in (1, 2):  # two pixels wider in each direction: blur reaches no farther
        core = np.logical_or.reduce([_shift(core, by, axis) for by in (-2, -1, 0, 1, 2)])
    return np.clip(alpha, 0, 1.2) * core


def _shift(mask: NDArray[np.bool_], by: int, axis: int) -> NDArray[np.bool_]:
    """Shift along an axis, with False moving in."""
    moved = np.roll(mask, by, axis)
    edge = [slice(None)] * mask.ndim
    edge[axis] = slice(0, by) if by > 0 else slice(mask.shape[axis] + by, None)
    moved[tuple(edge)] = False
    return moved


class _Fit(NamedTuple):
    explained: NDArray[np.float32]
    """(N,): fraction of the object's energy that the drawn shape explains."""
    tint: NDArray[np.float32]
    """(N, 3): its colour less the background's, by least squares."""
    radius: NDArray[np.float32]
    """(N,): pixels."""


def _fit(
    shape: str,
    difference: NDArray[np.float32],
    energy: NDArray[np.float32],
    radius: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    blur: float,
) -> _Fit:
    """Draw a shape with its centroid at (x, y), and fit its colour.

    difference: (N, S, S, 3) to the background; energy: (N,), of the object in it; radius, x, y: (N,), pixels; blur: the
    weight of the two neighbours of a pixel along each axis.
    """
    grid = np.arange(difference.shape[1], dtype=np.float32) + 0.5
    dx, dy = (grid - x[:, None])[:, None, :], (grid - y[:, None])[:, :, None]
    alpha = coverage(shape, dx, dy, radius[:, None, None])
    for axis in (1, 2) if blur else ():  # no object reaches the image's edge, so wrapping does no harm
        alpha = (1 - 2 * blur) * alpha + blur * (np.roll(alpha, 1, axis) + np.roll(alpha, -1, axis))
    drawn = np.maximum((alpha**2).sum((1, 2)), 1e-6)
    projection = np.einsum("nhwc,nhw->nc", difference, alpha)
    return _Fit((projection**2).sum(1) / (drawn * np.maximum(energy, 1e-6)), projection / drawn[:, None], radius)


def _unit_area(shape: str) -> float:
    grid = np.arange(-130, 130) + 0.5
    return float(coverage(shape, grid, grid[:, None], 100.0).sum()) / 100.0**2


_UNIT_AREA = {shape: _unit_area(shape) for shape in SHAPES}  # of radius 1


def _nearest(value: NDArray[np.floating], table: Mapping[str, tuple[float, ...]], tolerance: float) -> str | None:
    distances = {name: float(np.linalg.norm(value - np.asarray(entry))) for name, entry in table.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None
