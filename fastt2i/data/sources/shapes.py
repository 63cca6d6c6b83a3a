"""The embedded set as a dataset: images are drawn when they are read."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastt2i.data import shapes
from fastt2i.data.dataset import Dataset, Split
from fastt2i.data.hashing import hash64

RENDERINGS = 4  # of each training combination, jittered differently
CAPTIONS = 3  # distinct ones of a combination; a sample has two of them. The language model reads each of them once.


@dataclass(frozen=True)
class _Renderer:
    """Draws sample i: a pure function of its combination, its rendering and the seed, the same in every process."""

    samples: tuple[tuple[int, int], ...]
    """Combination and rendering of each sample."""
    image_size: int
    seed: int

    def __call__(self, sample: int) -> bytes:
        combination, rendering = self.samples[sample]
        rng = np.random.Generator(np.random.Philox(int(hash64(self.seed, combination, rendering))))
        pixels = shapes.render(shapes.combinations()[combination], self.image_size, rng)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # level 6 takes longer than the drawing
        return file.getvalue()


def detect(path: str) -> bool:
    """Whether `path` is the word for this set."""
    return path == "shapes"


def shapes_dataset(image_size: int, split: Split = "train", seed: int = 0) -> Dataset:
    """The embedded set at `image_size` pixels.

    `train`: each of the 1152 training combinations in 4 renderings; `heldout`: the other 128, once each; `all`: both.
    seed: of the jitter; captions do not depend on it, so that their cached features serve every seed.
    """
    heldout = shapes.heldout_combinations()
    keys, captions, samples, sides = [], [], [], []
    for combination, attributes in enumerate(shapes.combinations()):
        for rendering in range(1 if attributes in heldout else RENDERINGS):
            # The number first, so that the keys sort in this order, also as files of a folder.
            keys.append(f"{combination:04d}-{rendering}-{'-'.join(attributes).replace(' ', '-')}.png")
            captions.append(_captions(combination, attributes, rendering))
            samples.append((combination, rendering))
            sides.append(attributes in heldout)
    return Dataset(
        name="shapes",
        keys=keys,
        captions=captions,
        read=_Renderer(tuple(samples), image_size, seed),
        heldout=np.array(sides),
    ).split(split)


def _captions(combination: int, attributes: shapes.Attributes, rendering: int) -> tuple[str, str]:
    """Two of the combination's three captions, which rotate with the rendering."""
    first = int(hash64(combination) % np.uint64(shapes.PHRASINGS))
    # 13 phrasings on, the template differs and so do the synonyms.
    said = [shapes.caption(attributes, first + 13 * k) for k in range(CAPTIONS)]
    return said[rendering % CAPTIONS], said[(rendering + 1) % CAPTIONS]
