"""Opens the loader of a given name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.loaders.dali import DaliLoader
from fastt2i.data.loaders.loader import Loader, LoaderName
from fastt2i.data.loaders.memory import MemoryLoader
from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler


def open_loader(
    dataset: Dataset,
    sampler: Sampler,
    config: DataConfig,
    *,
    image_size: int,
    name: LoaderName,
    start_step: int = 0,
    known: Sequence[Problem] = (),
    device: torch.device | None = None,
    progress: bool = True,
) -> Loader:
    """Start loading at `start_step`.

    All loaders give the same samples, captions, flips and parts; DALI's pixels differ from the others' by rounding.
    sampler: made of the dataset's caption table. image_size: pixels at which images are decoded. name: see
    `choose.choose_loader`. known: undecodable images that an earlier part of the run found. device: where the batches
    of `dali` go, by default the CPU; those of others always go there. progress: show a bar on stderr while a set is
    read into memory.
    Raises UserError, here or with a later batch: no image can be decoded, or too few (see `quarantine.Quarantine`), or
    DALI is not installed.
    """
    fraction = config.max_bad_fraction
    if name == "memory":
        return MemoryLoader(
            dataset,
            sampler,
            image_size=image_size,
            workers=config.workers,
            max_bad_fraction=fraction,
            start_step=start_step,
            known=known,
            progress=progress,
        )
    if name == "dali":
        # Reading costs a core of Python something: on a CPU the decoding beside it costs more, on a GPU it does not.
        on_gpu = device is not None and device.type == "cuda"
        return DaliLoader(
            dataset,
            sampler,
            image_size=image_size,
            threads=config.workers,
            readers=config.workers if on_gpu else 0,
            max_bad_fraction=fraction,
            start_step=start_step,
            known=known,
            device=device,
        )
    return PillowLoader(
        dataset,
        sampler,
        image_size=image_size,
        workers=config.workers,
        max_bad_fraction=fraction,
        start_step=start_step,
        known=known,
    )
