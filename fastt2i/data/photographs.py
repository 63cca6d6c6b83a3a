"""Synthetic photographs to measure loaders with; no dataset to train on."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fastt2i.data.dataset import Dataset

GRAIN = 16  # pixels of a patch
NOISE = 5  # standard deviation, grey levels


def photographs_dataset(count: int, width: int, height: int, *, distinct: int = 16) -> Dataset:
    """JPEGs of quality 90, each `count / distinct` times over: smooth patches of colour under fine noise, which takes
    about as many bytes a pixel as photographs of that quality do."""
    contents = [_photograph(seed, width, height) for seed in range(min(count, distinct))]
    return Dataset(
        name=f"{count} drawn photographs",
        keys=[f"{number}.jpg" for number in range(count)],
        captions=[(f"photograph {number}",) for number in range(count)],
        read=_Repeated(contents),
    )


class _Repeated:
    """Reads from a list over and over, in any process."""

    def __init__(self, contents: list[bytes]) -> None:
        self._contents = contents

    def __call__(self, sample: int) -> bytes:
        return self._contents[sample % len(self._contents)]


def _photograph(seed: int, width: int, height: int) -> bytes:
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (height // GRAIN + 1, width // GRAIN + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.normal(0, NOISE, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
