"""Features are computed once, kept, and shared by processes; images that cannot be decoded leave gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastt2i.engine.distributed.world import World
from fastt2i.engine.scoring.feature_pass import Reader, read_images
from fastt2i.engine.scoring.feature_store import CHUNK, FeatureStore
from fastt2i.errors import UserError

COUNT = 2 * CHUNK + 5


class Images:
    """Image n has the level n % 256; some are not there. It stops after so many files' images."""

    key = "images"

    def __init__(self, missing: Sequence[int] = (), stop_after: int | None = None) -> None:
        self.missing, self.stop_after = missing, stop_after
        self.asked: list[range] = []

    def __len__(self) -> int:
        return COUNT

    def levels(self, numbers: range) -> tuple[Tensor, list[int]]:
        if self.stop_after == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append(numbers)
        there = [n for n in numbers if n not in self.missing]
        return torch.tensor([n % 256 for n in there], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2), there


class Rank(World):
    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


LEVEL = Reader("level", lambda levels, _: levels.float().mean((2, 3)))
NUMBER = Reader("number", lambda _, numbers: torch.tensor(numbers)[:, None])


def test_each_images_features_are_in_its_row(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "images", COUNT)
    missing = [3, *range(CHUNK, 2 * CHUNK)]
    read_images(Images(missing), [LEVEL, NUMBER], store, World(), description="")
    level, number = store.load("level"), store.load("number")
    assert level.shape == (COUNT, 3) and number.shape == (COUNT, 1)
    gone = level.isnan().all(1)
    assert gone.nonzero().flatten().tolist() == missing == number.isnan().all(1).nonzero().flatten().tolist()
    assert torch.equal(level[~gone, 0], number[~gone, 0])


def test_what_was_killed_goes_on(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "images", COUNT)
    with pytest.raises(KeyboardInterrupt):
        read_images(Images(stop_after=2), [LEVEL], store, World(), description="")
    with pytest.raises(UserError, match="000002.safetensors is missing"):
        store.load("level")
    (tmp_path / "images" / "level" / "000000.safetensors").write_bytes(b"cut off")
    rest = Images()
    read_images(rest, [LEVEL], store, World(), description="")
    assert rest.asked == [range(CHUNK), range(2 * CHUNK, COUNT)]
    assert store.load("level")[:, 0].tolist() == list(range(COUNT))
    more = Images()
    read_images(more, [LEVEL, NUMBER], store, World(), description="")
    assert len(more.asked) == 3 and store.load("number")[-1].item() == COUNT - 1
    store.remove()
    assert not (tmp_path / "images").exists()


def test_processes_share_the_files(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "images", COUNT)
    sources = [Images(), Images()]
    for rank, source in enumerate(sources):
        read_images(source, [LEVEL], store, Rank(rank, 2), description="")
    assert [len(source.asked) for source in sources] == [2, 1]
    alone = FeatureStore(tmp_path / "alone", "images", COUNT)
    read_images(Images(), [LEVEL], alone, World(), description="")
    assert torch.equal(store.load("level"), alone.load("level"))


def test_a_larger_set_takes_what_is_there(tmp_path: Path) -> None:
    """But for the last file, which had fewer images."""
    read_images(Images(), [LEVEL], FeatureStore(tmp_path, "images", COUNT - 1), World(), description="")
    source = Images()
    read_images(source, [LEVEL], FeatureStore(tmp_path, "images", COUNT), World(), description="")
    assert source.asked == [range(2 * CHUNK, COUNT)]
