"""The embedded set: one drawn object on a plain background, its captions, and the split that holds some out.

8 colours x 4 shapes x 2 sizes x 5 positions x 4 backgrounds make 1280 combinations. `render` draws one,
`caption` says it, `parse_caption` reads a caption back. Nothing here depends on a seed of the training's.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# sRGB. Any two, also of object and background, are 90 or more apart (Euclidean): jitter cannot make one another.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "orange": (250, 135, 10),
    "yellow": (250, 230, 40),
    "green": (25, 160, 50),
    "cyan": (30, 215, 230),
    "blue": (35, 65, 225),
    "purple": (125, 30, 165),
    "pink": (250, 90, 195),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 14),
    "white": (241, 241, 241),
    "gray": (128, 128, 128),
    "brown": (92, 58, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, float] = {"small": 0.115, "large": 0.21}  # radius as a fraction of the image's width
POSITIONS: dict[str, tuple[float, float]] = {  # (x, y) of the centroid as fractions of the width and height
    "center": (0.5, 0.5),
    "top left": (0.3, 0.3),
    "top right": (0.7, 0.3),
    "bottom left": (0.3, 0.7),
    "bottom right": (0.7, 0.7),
}

POSITION_JITTER = 0.03  # of the image's width, either way; as are the others of their own unit
SIZE_JITTER = 0.08
COLOR_JITTER = 10.0  # levels of 255, each channel of the object on its own
BACKGROUND_JITTER = 8.0  # levels of 255, all channels together


class Attributes(NamedTuple):
    """One combination, each field by its name in the tables above."""

    color: str
    shape: str
    size: str
    position: str
    background: str


@functools.cache
def combinations() -> tuple[Attributes, ...]:
    """All 1280 combinations in a fixed order."""
    return tuple(itertools.starmap(Attributes, itertools.product(COLORS, SHAPES, SIZES, POSITIONS, BACKGROUNDS)))


@functools.cache
def heldout_combinations() -> frozenset[Attributes]:
    """The tenth of all combinations that training never sees; every value of an attribute is held out equally often.

    The order of SHA-256 digests decides, under a quota for each value, so it is the same for every seed and release.
    """
    left = len(combinations()) // 10
    tables = (COLORS, SHAPES, SIZES, POSITIONS, BACKGROUNDS)
    quota = {(field, value): -(-left // len(table)) for field, table in enumerate(tables) for value in table}
    heldout = set()
    # The salt is one under which the quotas leave room for the full tenth.
    for attributes in sorted(
        combinations(), key=lambda a: hashlib.sha256(f"heldout 4: {' '.join(a)}".encode()).digest()
    ):
        fields = list(enumerate(attributes))
        if left and all(quota[field] for field in fields):
            heldout.add(attributes)
            left -= 1
            for field in fields:
                quota[field] -= 1
    return frozenset(heldout)


def coverage(
    shape: str, x: NDArray[np.floating], y: NDArray[np.floating], radius: NDArray[np.floating] | float
) -> NDArray[np.floating]:
    """How much of each pixel a shape covers, 0 to 1, from the signed distance to its outline.

    x, y: offsets of the pixels' centres from the shape's centroid, in pixels, y downwards; radius: in pixels.
    All three broadcast against each other.
    """
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    elif shape == "triangle":  # equilateral, a corner up; its inscribed circle has 0.6 of the radius
        distance = np.maximum(y, np.abs(x) * (3**0.5 / 2) - y / 2) - 0.6 * radius
    elif shape == "cross":
        long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        distance = np.maximum(long - 1.1 * radius, short - 0.36 * radius)
    else:
        raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0, 1)


def render(attributes: Attributes, image_size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a combination, jittered by `rng` -> uint8 (image_size, image_size, 3), sRGB."""
    x, y = np.asarray(POSITIONS[attributes.position]) + rng.uniform(-POSITION_JITTER, POSITION_JITTER, 2)
    radius = SIZES[attributes.size] * (1 + rng.uniform(-SIZE_JITTER, SIZE_JITTER)) * image_size
    color = np.asarray(COLORS[attributes.color]) + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3)
    background = np.asarray(BACKGROUNDS[attributes.background]) + rng.uniform(-BACKGROUND_JITTER, BACKGROUND_JITTER)
    pixels = np.arange(image_size) + 0.5
    alpha = coverage(attributes.shape, pixels - x * image_size, (pixels - y * image_size)[:, None], radius)[..., None]
    return np.clip(background + alpha * (color - background) + 0.5, 0, 255).astype(np.uint8)


_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_POSITION_WORDS = {
    "center": ("in the center", "in the middle"),
    "top left": ("at the top left", "in the upper left corner"),
    "top right": ("at the top right", "in the upper right corner"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
TEMPLATES = (
    "a {size} {color} {shape} {position} on a {background} background",
    "{position} there is a {size} {color} {shape} on a {background} background",
    "on a {background} background, a {size} {color} {shape} {position}",
    "a {background} background with a {size} {color} {shape} {position}",
    "{size} {color} {shape} {position}, {background} background",
    "the {shape} is {color} and {size}, {position} of a {background} image",
    "a {background} picture of a {size} {color} {shape} {position}",
    "there is a {color} {shape} {position}, it is {size} and the background is {background}",
    "{position}, a {size} {shape} in {color} against {background}",
    "a {color} {shape}, {size}, placed {position} of a {background} canvas",
)
PHRASINGS = len(TEMPLATES) * 4  # a template, one of two words for the size, one of two for the position


def caption(attributes: Attributes, phrasing: int) -> str:
    """Say a combination in one of `PHRASINGS` ways, each its own words; the order of words repeats every 10."""
    synonym, template = divmod(phrasing % PHRASINGS, len(TEMPLATES))
    text = TEMPLATES[template].format(
        color=attributes.color,
        shape=attributes.shape,
        size=_SIZE_WORDS[attributes.size][synonym % 2],
        position=_POSITION_WORDS[attributes.position][synonym // 2],
        background=attributes.background,
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    words = {
        "color": COLORS,
        "shape": SHAPES,
        "size": itertools.chain(*_SIZE_WORDS.values()),
        "position": itertools.chain(*_POSITION_WORDS.values()),
        "background": BACKGROUNDS,
    }
    groups = {field: f"(?P<{field}>{'|'.join(choices)})" for field, choices in words.items()}
    return tuple(re.compile(template.format(**groups)) for template in TEMPLATES)


def parse_caption(caption: str) -> Attributes | None:
    """The combination that a caption of this set names, in any of its phrasings; None for any other text.

    Case, a full stop at the end, repeated spaces and "a" or "an" make no difference.
    """
    text = re.sub(r"\ban ", "a ", " ".join(caption.lower().split()).removesuffix("."))
    for pattern in _patterns():
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            found["size"] = next(name for name, said in _SIZE_WORDS.items() if found["size"] in said)
            found["position"] = next(name for name, said in _POSITION_WORDS.items() if found["position"] in said)
            return Attributes(**found)
    return None
