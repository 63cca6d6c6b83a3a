"""Indices of shards and caches of text features: built by processes that are killed, or by several at once."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.webdataset import tar_dataset
from fastt2i.text.cache import CHUNK, TextCache
from tests.unit.text import test_cache as fake_encoder
from tests.unit.text.test_cache import CAPTIONS, FakeEncoder, files

ROOT = Path(__file__).parents[2]
Numbers = Callable[[Dataset], list[int]]


@pytest.fixture
def shards(make_layout: Callable[[str, Path], str], tmp_path: Path, cache: Path) -> Path:
    return Path(make_layout("webdataset", tmp_path / "set"))


INDEX_BUILD = """
import sys, time
from fastt2i.data.sources.helpers import tar_index
from fastt2i.data.sources.webdataset import tar_dataset
members = tar_index._members
def slowly(file, shard):
    for member in members(file, shard):
        time.sleep(0.01)
        yield member
tar_index._members = slowly
print("ready", flush=True)
tar_dataset(sys.argv[1], "all")
"""


def test_a_killed_indexing_leaves_nothing_wrong(shards: Path, numbers_in: Numbers) -> None:
    for wait in (0.0, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen([sys.executable, "-c", INDEX_BUILD, str(shards)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sorted(numbers_in(tar_dataset(str(shards), "all"))) == list(range(12))
    assert len(list(shards.glob(".*.index.json"))) == 3


def _keys(path: str) -> list[str]:
    return list(tar_dataset(path, "all").keys)


def test_several_processes_index_at_once(shards: Path) -> None:
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        results = pool.map(_keys, [str(shards)] * 3)
    assert results[0] == results[1] == results[2] and len(results[0]) == 12


CACHE_BUILD = """
import importlib.util, sys, time
from pathlib import Path
from fastt2i.text.cache import TextCache
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
class Slow(here.FakeEncoder):
    def __call__(self, captions):
        time.sleep(float(sys.argv[3]))
        return super().__call__(captions)
encoder = Slow()
TextCache.open(encoder, here.CAPTIONS, Path(sys.argv[2]), progress=False)
print(encoder.calls)
"""


def build(directory: Path, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CACHE_BUILD, fake_encoder.__file__, str(directory), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def kill_build(directory: Path, seconds: float, rows: int) -> None:
    """Start a build and kill it as soon as its mask file is there and has more than this many rows of three bytes."""
    process = build(directory, seconds)
    while not any(path.stat().st_size > 3 * rows or not rows for path in directory.glob(".*/mask.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path / "whole", progress=False)
    directory = tmp_path / "killed"
    kill_build(directory, 30, rows=0)
    encoder = FakeEncoder()
    TextCache.open(encoder, CAPTIONS, directory, progress=False)
    assert encoder.calls == 3 and files(directory) == files(tmp_path / "whole")


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path / "whole", progress=False)
    directory = tmp_path / "killed"
    kill_build(directory, 0.5, rows=2 * CHUNK)
    encoder = FakeEncoder()
    TextCache.open(encoder, CAPTIONS, directory, progress=False)
    assert encoder.calls == 2 and files(directory) == files(tmp_path / "whole")


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path / "whole", progress=False)
    ranks = [build(tmp_path / "shared", 0.3) for _ in range(3)]
    calls = [int(rank.communicate()[0]) for rank in ranks]
    assert sorted(calls) == [0, 0, 3] and [rank.returncode for rank in ranks] == [0, 0, 0]
    assert files(tmp_path / "shared") == files(tmp_path / "whole")
