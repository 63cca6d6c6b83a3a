"""The index of a shard: made once, kept beside it or in the cache, and never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastt2i.data.sources.helpers import tar_index
from fastt2i.data.sources.helpers.tar_index import read_shard
from fastt2i.data.sources.webdataset import tar_dataset
from fastt2i.files.sealed import sealed, unsealed
from tests.unit.data.sources.test_webdataset import MakeTar, MembersOf, Numbers, problems


def indices(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".index.json"))


def test_the_index_is_made_once_and_again_when_the_shard_changes(
    shards: Path, make_tar: MakeTar, members_of: MembersOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(tar_index, "read_shard", lambda path, columns: made.append(path) or read_shard(path, columns))
    first = tar_dataset(str(shards), "all")
    assert len(made) == 3
    assert indices(shards) == [f".{name}.tar.index.json" for name in ("test-00000", "train-00000", "train-00001")]
    again = tar_dataset(str(shards), "all")
    assert len(made) == 3 and list(again) == list(first) and again.read(3) == first.read(3)
    os.utime(shards / "test-00000.tar", ns=(1, 1))
    make_tar(shards / "train-00001.tar", members_of(7))
    assert len(tar_dataset(str(shards), "all")) == 9
    assert sorted(Path(path).name for path in made[3:]) == ["test-00000.tar", "train-00001.tar"]
    assert len(tar_dataset(str(shards), "all", text_column="caption")) == 9
    assert len(made) == 8


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"header": {}}', b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_index_is_replaced(shards: Path, content: bytes) -> None:
    before = list(tar_dataset(str(shards), "all"))
    index = shards / ".test-00000.tar.index.json"
    good = index.read_bytes()
    index.write_bytes(content)
    assert list(tar_dataset(str(shards), "all")) == before
    assert index.read_bytes() == good


def test_problems_are_kept_with_the_index(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf) -> None:
    make_tar(tmp_path / "a.tar", [*members_of(1), ("x.txt", b"alone")])
    found = [problems(tar_dataset(str(tmp_path / "a.tar"), "all")) for _ in range(2)]
    assert found == [{"a.tar/x": "captions without an image"}] * 2


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_folder_that_cannot_be_written(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, numbers_in: Numbers, elsewhere: bool
) -> None:
    """The index goes to the cache directory, or nowhere, with a warning."""
    original = tar_index.replace_file

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == shards or not elsewhere:
            raise PermissionError(13, "Permission denied")
        original(path, content)

    monkeypatch.setattr(tar_index, "replace_file", refuse)
    if elsewhere:
        first = tar_dataset(str(shards), "all")
        monkeypatch.setattr(tar_index, "read_shard", lambda *_: pytest.fail("made again"))
        assert list(tar_dataset(str(shards), "all")) == list(first)
        assert len(list((cache / "shards").glob("*.json"))) == 3
    else:
        with pytest.warns(UserWarning, match="cannot be kept .*Permission denied.* and is made anew each time"):
            first = tar_dataset(str(shards), "all")
        assert list((cache / "shards").glob("*.json")) == []
    assert indices(shards) == [] and sorted(numbers_in(first)) == list(range(12))


@pytest.mark.parametrize(
    "sample",
    [
        ["a.jpg", 0, 10**15, ["a caption"], None],
        ["a.jpg", 2**70, 1, ["a caption"], None],
        ["a.jpg", -512, 100, ["a caption"], None],
        ["a.jpg", 0, 100, [], None],
        ["a.jpg", 0, 100, ["\x1b[2Jobeyed by a terminal"], None],
        ["a.jpg", float("inf"), 100, ["a caption"], None],
    ],
)
def test_an_index_that_no_reading_of_the_tar_makes_does_not_count(shards: Path, sample: list[object]) -> None:
    tar_dataset(str(shards), "all")
    path = shards / ".test-00000.tar.index.json"
    good = path.read_bytes()
    content = json.loads(unsealed(good))
    content["samples"][0] = sample
    path.write_bytes(sealed(json.dumps(content).encode()))
    assert tar_index.load_shard(str(shards / "test-00000.tar"), content["header"]["columns"]) is None
    path.write_bytes(good)
    assert tar_index.load_shard(str(shards / "test-00000.tar"), content["header"]["columns"]) is not None


def test_an_index_with_a_flipped_bit_does_not_count(shards: Path) -> None:
    dataset = tar_dataset(str(shards), "all")
    path = shards / ".test-00000.tar.index.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"a picture of", b"a picturd of"))
    assert list(tar_dataset(str(shards), "all")) == list(dataset) and path.read_bytes() == good


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_an_index_is_not_waited_for(shards: Path) -> None:
    os.mkfifo(shards / ".test-00000.tar.index.json")
    assert len(tar_dataset(str(shards), "all").keys) == 12
