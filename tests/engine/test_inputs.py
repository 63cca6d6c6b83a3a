"""What a step reads goes with the images of its batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastt2i.config import DataConfig
from fastt2i.data.index import open_index
from fastt2i.data.loaders import open_loader
from fastt2i.data.sampler import Sampler
from fastt2i.data.text_cache import TextCache
from fastt2i.engine.inputs import InputSource


@pytest.mark.parametrize("kind", [{"workers": 2}, {"workers": 0, "loader": "pillow"}])
def test_classes_are_those_of_the_images_even_of_replacements(
    make_layout: Callable[[str, Path], str], tmp_path: Path, kind: dict[str, int]
) -> None:
    """Every bird's level of grey is its number, and three numbers in a row are a class; one image is broken."""
    root = make_layout("cub", tmp_path)
    Path(root, "CUB_200_2011", "images", "001.Class_0", "Bird_0001.jpg").write_bytes(b"")
    index = open_index(root, image_size=16)
    table = index.caption_table()
    count = len(table.captions)
    arrays = {
        "sentence": np.zeros((count, 2), np.float16),
        "keywords": np.zeros((count, 1, 2), np.float16),
        "mask": np.ones((count, 1), np.bool_),
    }
    loader = open_loader(
        index,
        Sampler(table, batch_size=9, seed=0, flip=False),
        DataConfig(max_bad_fraction=0.5, **kind),
        image_size=16,
        progress=False,
    )
    settings = {"noise_dim": 2, "draws": 0, "seed": 0, "first_step": 0, "device": torch.device("cpu")}
    with loader:
        for inputs, _ in zip(InputSource(loader, TextCache(arrays), index.classes, **settings), range(3), strict=False):
            numbers = (inputs.images.float().flatten(1).median(dim=1).values / 20).round().long()
            assert inputs.class_ids is not None
            assert (numbers // 3 + 1).tolist() == inputs.class_ids.tolist()
