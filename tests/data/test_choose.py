"""Which loader a run takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i.config import DataConfig
from fastt2i.data.loaders import LoaderName, choose, open_loader
from fastt2i.data.loaders.choose import Choice, choose_loader
from fastt2i.data.loaders.memory import MemoryLoader
from fastt2i.data.loaders.pillow import PillowLoader
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_index
from fastt2i.errors import UserError

Choose = Callable[..., Choice]


@pytest.fixture
def chosen(captioned_folder: Callable[..., Path]) -> Choose:
    """chosen(before=None, **settings): of four images of 256 pixels, 0.75 MiB."""
    index = folder_index(captioned_folder(4), "all")
    sampler = Sampler(index.caption_table(), batch_size=2, seed=0, flip=False)
    return lambda before=None, **settings: choose_loader(
        index, sampler, DataConfig(**settings), image_size=256, device=None, before=before
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[LoaderName, float]:
    """What measuring would find."""
    found: dict[LoaderName, float] = {"pillow": 100, "dali": 200}
    monkeypatch.setattr(choose, "rates", lambda *arguments, **settings: found)
    monkeypatch.setattr(choose, "missing", lambda: "")
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
    monkeypatch.setattr(choose, "missing", lambda: "it is not there")
    assert chosen(memory_mb=0) == ("pillow", "it is not there")
    assert chosen(memory_mb=0, before="dali") == ("pillow", "the run began with DALI, but it is not there")
    with pytest.raises(UserError, match="data.loader is dali, but it is not there; or use auto or pillow"):
        chosen(loader="dali")


def test_the_measurement_measures(chosen: Choose) -> None:
    """Nothing is replaced here: both loaders run on the images at hand."""
    pytest.importorskip("nvidia.dali")
    name, why = chosen(memory_mb=0)
    found = {who: float(rate.replace(",", "")) for who, rate in re.findall(r"(\w+) ([\d,]+) img/s", why)}
    assert found.keys() == {"dali", "pillow"} and min(found.values()) > 0
    assert name == max(found, key=lambda each: found[each])


def test_which_loader_opens(captioned_folder: Callable[..., Path]) -> None:
    index = folder_index(captioned_folder(4), "all")
    sampler = Sampler(index.caption_table(), batch_size=2, seed=0, flip=False)
    for settings, kind in (({"memory_mb": 1}, MemoryLoader), ({"loader": "pillow", "workers": 0}, PillowLoader)):
        with open_loader(index, sampler, DataConfig(**settings), image_size=256, progress=False) as loader:
            assert type(loader) is kind
