"""The loader with worker processes, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import data as torch_data

from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset


def test_batches_go_through_pipes_where_shared_memory_is_full(
    captioned_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = folder_dataset(captioned_folder(6))
    sampler = Sampler(dataset.caption_table(), batch_size=4, seed=0, flip=True)

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    def open_loader() -> PillowLoader:
        return PillowLoader(dataset, sampler, image_size=8, workers=0, max_bad_fraction=0)

    with open_loader() as loader:
        expected = [next(loader) for _ in range(2)]
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: "in a worker")
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with open_loader() as loader, pytest.warns(UserWarning, match="has no room .* --shm-size=1g, or set") as told:
        batches = [next(loader) for _ in range(2)]
    assert len(told) == 1
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(mine, its) for mine, its in zip(batch, other, strict=True))
