"""What a step reads goes with the images of its batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastt2i.config import DataConfig
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import LoaderName
from fastt2i.data.open import open_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.engine.inputs import InputSource
from fastt2i.text.cache import TextCache


def numbered(captions: int) -> TextCache:
    """Features of this many captions, each its own number."""
    numbers = np.arange(captions, dtype=np.float16)
    return TextCache(
        {
            "sentence": np.stack([numbers, numbers], axis=1),
            "keywords": np.zeros((captions, 1, 2), np.float16),
            "mask": np.ones((captions, 1), np.bool_),
        }
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("loader", ["memory", "pillow", "dali"])
def test_inputs_of_a_step_are_rows_of_its_captions_on_the_device(
    make_layout: Callable[[str, Path], str], tmp_path: Path, loader: str, device: str
) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    index = open_dataset(make_layout("cub", tmp_path), image_size=16)
    table, where = index.caption_table(), torch.device(device)
    sampler = Sampler(table, batch_size=4, seed=0, flip=True)
    config = DataConfig(workers=1)
    kept = []
    with open_loader(index, sampler, config, image_size=16, name=loader, device=where, progress=False) as batches:
        source = InputSource(
            batches,
            numbered(len(table.captions)),
            index.classes,
            noise_dim=3,
            draws=2,
            seed=7,
            first_step=0,
            device=where,
        )
        for step, inputs in zip(range(6), source, strict=False):
            if device == "cuda":  # what is written on the memory of inputs that are dropped must not be seen
                torch.cuda._sleep(10**7)
            kept.append([part.clone() for part in (*inputs.text, *(x for x in inputs if isinstance(x, torch.Tensor)))])
            plan = sampler.plan(step)
            assert inputs.caption_ids.tolist() == plan.caption_ids.tolist()
            assert inputs.text.sentence[:, 0].tolist() == plan.caption_ids.tolist()
            assert inputs.mismatched_sentence[:, 1].tolist() == plan.mismatched_ids.tolist()
            assert {part.device.type for part in kept[-1]} == {device}
    sampler = Sampler(table, batch_size=4, seed=0, flip=True)
    with open_loader(index, sampler, config, image_size=16, name="memory", progress=False) as batches:
        for (images, noise), batch in zip(((k[3], k[8]) for k in kept), batches, strict=False):
            assert (images.cpu().int() - batch.images.int()).abs().max() <= 2
            assert noise.shape == (4, 3)
    assert len({tuple(k[8].flatten().tolist()) for k in kept}) == 6  # every step has its own noise


@pytest.mark.parametrize(("kind", "workers"), [("memory", 2), ("pillow", 0)])
def test_classes_are_those_of_the_images_even_of_replacements(
    make_layout: Callable[[str, Path], str], tmp_path: Path, kind: LoaderName, workers: int
) -> None:
    """Every bird's level of grey is its number, and three numbers in a row are a class; one image is broken."""
    root = make_layout("cub", tmp_path)
    Path(root, "CUB_200_2011", "images", "001.Class_0", "Bird_0001.jpg").write_bytes(b"")
    index = open_dataset(root, image_size=16)
    table = index.caption_table()
    loader = open_loader(
        index,
        Sampler(table, batch_size=9, seed=0, flip=False),
        DataConfig(max_bad_fraction=0.5, workers=workers),
        image_size=16,
        name=kind,
        progress=False,
    )
    settings = {"noise_dim": 2, "draws": 0, "seed": 0, "first_step": 0, "device": torch.device("cpu")}
    with loader:
        for inputs, _ in zip(
            InputSource(loader, numbered(len(table.captions)), index.classes, **settings), range(3), strict=False
        ):
            numbers = (inputs.images.float().flatten(1).median(dim=1).values / 20).round().long()
            assert inputs.class_ids is not None
            assert (numbers // 3 + 1).tolist() == inputs.class_ids.tolist()
