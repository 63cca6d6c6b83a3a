"""From an index and a sampler to batches of decoded images."""

from __future__ import annotations

from fastt2i.config import DataConfig
from fastt2i.data.index import Index
from fastt2i.data.loaders.loader import Batch, Loader
from fastt2i.data.sampler import Sampler

__all__ = ["Batch", "Loader", "open_loader"]


def open_loader(
    index: Index,
    sampler: Sampler,
    config: DataConfig,
    *,
    image_size: int,
    start_step: int = 0,
    progress: bool = True,
) -> Loader:
    """Start loading at `start_step`: from memory where the whole set fits in `config.memory_mb`, else with workers.

    Both give the same batches. sampler: made of the index's caption table. progress: show a bar on stderr while a set
    is read into memory.
    Raises UserError, here or with a later batch: no image can be decoded, or too few (see `rescue.Quarantine`).
    """
    if len(index) * image_size**2 * 3 <= config.memory_mb * 2**20:
        from fastt2i.data.loaders.memory import MemoryLoader

        return MemoryLoader(
            index,
            sampler,
            image_size=image_size,
            workers=config.workers,
            max_bad_fraction=config.max_bad_fraction,
            start_step=start_step,
            progress=progress,
        )
    from fastt2i.data.loaders.pillow import PillowLoader

    return PillowLoader(
        index,
        sampler,
        image_size=image_size,
        workers=config.workers,
        max_bad_fraction=config.max_bad_fraction,
        start_step=start_step,
    )
