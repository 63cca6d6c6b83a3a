"""From an index and a sampler to batches of decoded images.

No torch is imported here: DALI's reader processes import this package, and need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.sampler import Sampler

if TYPE_CHECKING:
    import torch

    from fastt2i.data.loaders.loader import Loader

#: What gives the batches: `memory` decodes all images once, up front; the others decode anew each time.
LoaderName = Literal["memory", "pillow", "dali"]


def open_loader(
    index: Dataset,
    sampler: Sampler,
    config: DataConfig,
    *,
    image_size: int,
    name: LoaderName | None = None,
    start_step: int = 0,
    known: Sequence[Problem] = (),
    device: torch.device | None = None,
    progress: bool = True,
) -> Loader:
    """Start loading at `start_step`.

    All loaders give the same samples, captions and flips; DALI's pixels differ from the others' by rounding.
    sampler: made of the index's caption table. name: None leaves it to `choose.choose_loader`. known: undecodable
    images that an earlier part of the run found. device: where the batches of `dali` go, by default the CPU; those of
    others always go there. progress: show a bar on stderr while a set is read into memory.
    Raises UserError, here or with a later batch: no image can be decoded, or too few (see `rescue.Quarantine`), or DALI
    is not installed.
    """
    if name is None:
        from fastt2i.data.loaders.choose import choose_loader

        name = choose_loader(index, sampler, config, image_size=image_size, device=device).name
    fraction = config.max_bad_fraction
    if name == "memory":
        from fastt2i.data.loaders.memory import MemoryLoader

        return MemoryLoader(
            index,
            sampler,
            image_size=image_size,
            workers=config.workers,
            max_bad_fraction=fraction,
            start_step=start_step,
            known=known,
            progress=progress,
        )
    if name == "dali":
        from fastt2i.data.loaders.dali import DaliLoader

        # Reading costs a core of Python something: on a CPU the decoding beside it costs more, on a GPU it does not.
        on_gpu = device is not None and device.type == "cuda"
        return DaliLoader(
            index,
            sampler,
            image_size=image_size,
            threads=config.workers,
            readers=config.workers if on_gpu else 0,
            max_bad_fraction=fraction,
            start_step=start_step,
            known=known,
            device=device,
        )
    from fastt2i.data.loaders.pillow import PillowLoader

    return PillowLoader(
        index,
        sampler,
        image_size=image_size,
        workers=config.workers,
        max_bad_fraction=fraction,
        start_step=start_step,
        known=known,
    )
