"""Which loader a run takes, and why."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import torch

from fastt2i.config import DataConfig
from fastt2i.data.index import Index
from fastt2i.data.loaders import LoaderName
from fastt2i.data.loaders.dali import DaliLoader, missing
from fastt2i.data.loaders.loader import Loader
from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler
from fastt2i.errors import UserError

_MOST_STEPS = 8  # measured of each loader, after one that is not
_SECONDS = 0.6  # spent on reading ahead, and on each loader, at most; but always long enough for a step


class Choice(NamedTuple):
    """A loader, and why it is this one."""

    name: LoaderName
    why: str


def choose_loader(
    index: Index,
    sampler: Sampler,
    config: DataConfig,
    *,
    image_size: int,
    device: torch.device | None,
    before: LoaderName | None = None,
) -> Choice:
    """The loader that `config.loader` asks for; with `auto` memory where the set fits, and else the faster one here.

    before: what the run had that is gone on with; `auto` then keeps to its pixels.
    Raises UserError: DALI is asked for and not installed, or no image can be decoded.
    """
    if config.loader != "auto":
        if config.loader == "dali" and (reason := missing()):
            raise UserError(f"data.loader is dali, but {reason}; or use auto or pillow")
        return Choice(config.loader, "as data.loader says")
    if before == "dali" and not missing():
        return Choice("dali", "as the run began")
    if len(index) * image_size**2 * 3 <= config.memory_mb * 2**20:
        return Choice("memory", f"all {len(index)} images fit in data.memory_mb {config.memory_mb}")
    if before is not None:
        kept = "as the run began" if before != "dali" else f"the run began with DALI, but {missing()}"
        return Choice("pillow", kept)
    if reason := missing():
        return Choice("pillow", reason)
    found = rates(index, sampler, image_size=image_size, workers=config.workers, device=device)
    return Choice(max(found, key=lambda name: found[name]), described(found, config.workers))


def described(found: dict[LoaderName, float], workers: int) -> str:
    """The measured rates, for people."""
    each = ", ".join(f"{name} {rate:,.0f} img/s" for name, rate in found.items())
    return f"measured here: {each}, {max(workers, 1)} workers each"


def rates(
    index: Index, sampler: Sampler, *, image_size: int, workers: int, device: torch.device | None
) -> dict[LoaderName, float]:
    """Images a second of each loader that decodes anew, over the same steps, whose files are read before.

    Pillow is timed in this process: starting workers takes longer than all this. Its rate times the cores that the
    workers would have leaves out what it costs to hand over their batches.
    """
    steps = _read_ahead(index, sampler)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pillow = PillowLoader(index, sampler, image_size=image_size, workers=0, max_bad_fraction=1)
    dali = DaliLoader(
        index,
        sampler,
        image_size=image_size,
        threads=workers,
        max_bad_fraction=1,
        device=device,
    )
    return {"pillow": _rate(pillow, steps) * max(1, min(workers, cores)), "dali": _rate(dali, steps)}


def _read_ahead(index: Index, sampler: Sampler) -> int:
    """Have the system read the files of some steps: how many. What is not there yet would slow the first loader."""
    began = time.perf_counter()
    for step in range(_MOST_STEPS + 1):
        for sample in sampler.plan(step).samples:
            try:
                index.read(int(sample))
            except OSError:
                continue
        if step and time.perf_counter() - began > _SECONDS:
            return step + 1
    return _MOST_STEPS + 1


def _rate(loader: Loader, steps: int) -> float:
    with loader:
        next(loader)
        taken, began = 0, time.perf_counter()
        for _ in range(steps - 1):
            taken += len(next(loader).images)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if time.perf_counter() - began > _SECONDS:
                break
        return taken / (time.perf_counter() - began)
