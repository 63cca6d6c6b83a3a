"""Which loader a run takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.loaders import choose, dali
from fastt2i.data.loaders.choose import Choice, choose_loader
from fastt2i.data.loaders.dali import DaliLoader
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Batch, Loader, LoaderName
from fastt2i.data.loaders.memory import MemoryLoader
from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.errors import UserError

Choose = Callable[..., Choice]


@pytest.fixture
def chosen(captioned_folder: Callable[..., Path]) -> Choose:
    """chosen(before=None, **settings): of four images of 256 pixels, 0.75 MiB."""
    dataset = folder_dataset(captioned_folder(4), "all")
    sampler = Sampler(dataset.caption_table(), batch_size=2, seed=0, flip=False)
    return lambda before=None, **settings: choose_loader(
        dataset, sampler, DataConfig(**settings), image_size=256, device=None, before=before
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[LoaderName, float]:
    """What measuring would find."""
    found: dict[LoaderName, float] = {"pillow": 100, "dali": 200}
    monkeypatch.setattr(choose, "measure_rates", lambda *arguments, **settings: found)
    monkeypatch.setattr(choose, "unavailable_reason", lambda: "")
    return found


def test_a_small_set_is_kept_in_memory(chosen: Choose, times: dict[LoaderName, float]) -> None:
    assert chosen(memory_mb=1) == ("memory", "all 4 images fit in data.memory_mb 1")


def test_of_others_the_faster_loader_is_taken(chosen: Choose, times: dict[LoaderName, float]) -> None:
    assert chosen(memory_mb=0) == ("dali", "measured here: pillow 100 img/s, dali 200 img/s, 2 workers each")
    times["pillow"] = 1234
    assert chosen(memory_mb=0) == ("pillow", "measured here: pillow 1,234 img/s, dali 200 img/s, 2 workers each")


@pytest.mark.parametrize("name", ["dali", "pillow"])
def test_what_is_asked_for_is_taken(chosen: Choose, times: dict[LoaderName, float], name: str) -> None:
    assert chosen(loader=name).name == name


@pytest.mark.parametrize(
    ("before", "memory_mb", "after"),
    [
        ("dali", 0, "dali"),
        ("dali", 1, "dali"),
        ("memory", 0, "pillow"),
        ("memory", 1, "memory"),
        ("pillow", 1, "memory"),
    ],
)
def test_a_resumed_run_keeps_its_pixels(
    chosen: Choose, times: dict[LoaderName, float], before: LoaderName, memory_mb: int, after: LoaderName
) -> None:
    assert chosen(before=before, memory_mb=memory_mb).name == after


def test_without_dali(chosen: Choose, times: dict[LoaderName, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "unavailable_reason", lambda: "it is not there")
    assert chosen(memory_mb=0) == ("pillow", "it is not there")
    assert chosen(memory_mb=0, before="dali") == ("pillow", "the run began with DALI, but it is not there")
    with pytest.raises(UserError, match="data.loader is dali, but it is not there; or use auto or pillow"):
        chosen(loader="dali")


def test_a_dali_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise TypeError("no docstrings")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dali, "import_module", fail)
    assert dali.unavailable_reason() == "NVIDIA DALI cannot be imported (TypeError: no docstrings)"


class Clock:
    """Goes on by a hundredth of a second whenever an image is read."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.now = 0.0
        self.read = read

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, sample: int) -> bytes:
        self.now += 0.01
        return self.read(sample)


def test_the_measurement_measures(captioned_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loaders run, and read in this process; by a clock of which nothing but reading takes time."""
    pytest.importorskip("nvidia.dali")
    dataset = folder_dataset(captioned_folder(4), "all")
    clock = Clock(dataset.read)
    monkeypatch.setattr(choose, "time", clock)
    sampler = Sampler(dataset.caption_table(), batch_size=2, seed=0, flip=False)
    config = DataConfig(workers=0, memory_mb=0)
    found = choose.measure_rates(replace(dataset, read=clock), sampler, config, image_size=16, device=None)
    assert found == {"pillow": pytest.approx(100), "dali": pytest.approx(100)}
    name, why = choose_loader(replace(dataset, read=clock), sampler, config, image_size=16, device=None)
    assert name in found and why == "measured here: pillow 100 img/s, dali 100 img/s, 1 workers each"


class Ahead(Loader):
    """Has some steps of four images ready, and takes a second for each of those that follow."""

    def __init__(self, ready: int) -> None:
        self.ready, self.now = ready, 0.0

    def __next__(self) -> Batch:
        self.now += self.ready < 1
        self.ready -= 1
        return Batch(torch.zeros(4, 1, 1, 3, dtype=torch.uint8), *[torch.zeros(4, dtype=torch.int64)] * 3)

    def close(self) -> None:
        """Nothing is open."""


def test_what_was_ready_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Ahead(7)
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: loader.now))
    assert choose._rate(loader, ahead=7) == 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_would_run_is_what_is_measured(
    captioned_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """With as many readers and threads; nothing is decoded here."""
    opened: list[dict[str, object]] = []

    def begin(self: Loader, dataset: Dataset, sampler: Sampler, **settings: object) -> None:
        opened.append(settings | {"kind": type(self), "max_bad_fraction": None})
        Ahead.__init__(self, 0)  # type: ignore[arg-type]

    for kind in (PillowLoader, DaliLoader):
        monkeypatch.setattr(kind, "__init__", begin)
        for part in ("__next__", "close"):
            monkeypatch.setattr(kind, part, getattr(Ahead, part))
    monkeypatch.setattr(choose, "_SECONDS", 0)
    dataset = folder_dataset(captioned_folder(4), "all")
    sampler = Sampler(dataset.caption_table(), batch_size=2, seed=0, flip=False)
    config = DataConfig(workers=3)
    choose.measure_rates(dataset, sampler, config, image_size=16, device=torch.device(device))
    measured = list(opened)
    for name in ("pillow", "dali"):
        open_loader(dataset, sampler, config, image_size=16, name=name, device=torch.device(device))
    assert len(measured) == 2 and opened[2:] == measured
    assert measured[1]["readers"] == (3 if device == "cuda" else 0)


def test_which_loader_opens(captioned_folder: Callable[..., Path]) -> None:
    dataset = folder_dataset(captioned_folder(4), "all")
    sampler = Sampler(dataset.caption_table(), batch_size=2, seed=0, flip=False)
    for settings, kind in (({"memory_mb": 1}, MemoryLoader), ({"loader": "pillow", "workers": 0}, PillowLoader)):
        config = DataConfig(**settings)
        name = choose.choose_loader(dataset, sampler, config, image_size=256, device=None).name
        with open_loader(dataset, sampler, config, image_size=256, name=name, progress=False) as loader:
            assert type(loader) is kind
