"""Chooses the loader of a run, by settings, memory and measured rates."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import NamedTuple

import torch

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.loaders.dali import DaliLoader, unavailable_reason
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Loader, LoaderName
from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler
from fastt2i.errors import UserError

_MOST_STEPS = 16  # whose files are read
_SECONDS = 0.5  # spent on reading them, and on each loader, at most; but always long enough for some steps


class Choice(NamedTuple):
    """A loader, and why it is this one."""

    name: LoaderName
    why: str


def choose_loader(
    dataset: Dataset,
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
        if config.loader == "dali" and (reason := unavailable_reason()):
            raise UserError(f"data.loader is dali, but {reason}; or use auto or pillow")
        return Choice(config.loader, "as data.loader says")
    if before == "dali" and not unavailable_reason():
        return Choice("dali", "as the run began")
    if len(dataset) * image_size**2 * 3 <= config.memory_mb * 2**20:
        return Choice("memory", f"all {len(dataset)} images fit in data.memory_mb {config.memory_mb}")
    if before is not None:
        kept = "as the run began" if before != "dali" else f"the run began with DALI, but {unavailable_reason()}"
        return Choice("pillow", kept)
    if reason := unavailable_reason():
        return Choice("pillow", reason)
    found = measure_rates(dataset, sampler, config, image_size=image_size, device=device)
    return Choice(max(found, key=lambda name: found[name]), described(found, config.workers))


def described(found: dict[LoaderName, float], workers: int) -> str:
    """The measured rates, for people."""
    each = ", ".join(f"{name} {rate:,.0f} img/s" for name, rate in found.items())
    return f"measured here: {each}, {max(workers, 1)} workers each"


def measure_rates(
    dataset: Dataset, sampler: Sampler, config: DataConfig, *, image_size: int, device: torch.device | None
) -> dict[LoaderName, float]:
    """Images a second of each loader that decodes anew, on the same files, which are read once before.

    They are those that `open_loader` would open: where it gives DALI processes that read, it is measured with them.
    """
    _read_ahead(dataset, sampler)
    # Steps that are made before one is asked for; DALI's readers may be as many ahead of it as it is itself.
    ahead: dict[LoaderName, int] = {
        "pillow": config.workers * PillowLoader.prefetch,
        "dali": 2 * DaliLoader.prefetch,
    }
    lenient = replace(config, max_bad_fraction=1)
    return {
        name: _rate(open_loader(dataset, sampler, lenient, image_size=image_size, name=name, device=device), steps)
        for name, steps in ahead.items()
    }


def _read_ahead(dataset: Dataset, sampler: Sampler) -> None:
    """Have the system read the files of some steps: what is not there yet would slow the first loader."""
    began = time.perf_counter()
    for step in range(_MOST_STEPS):
        for sample in sampler.plan(step).samples:
            with contextlib.suppress(OSError):
                dataset.read(int(sample))
        if time.perf_counter() - began > _SECONDS:
            break


def _rate(loader: Loader, ahead: int) -> float:
    """Images a second once what the loader made before it was asked is used up: `ahead` steps, and one that starts."""
    with loader:
        for _ in range(ahead + 1):
            images = next(loader).images
        taken, began = 0, time.perf_counter()
        while not taken or time.perf_counter() - began < _SECONDS:
            taken += len(next(loader).images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
        return taken / (time.perf_counter() - began)
