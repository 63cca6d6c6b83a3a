"""Sets written out as shards read back as what they were, the same bytes whenever and however often it takes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from fastt2i.data.__main__ import main
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import decode
from fastt2i.data.open import open_dataset
from fastt2i.data.sources.shapes import shapes_dataset
from fastt2i.data.tools import pack_shards as module
from fastt2i.data.tools.manifest import read_manifest
from fastt2i.errors import UserError

Numbers = Callable[[Dataset], list[int]]
pack_shards = functools.partial(module.pack_shards, shard_samples=10_000, shard_mb=256)


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    """No test of these writes to the user's."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".index.json")}


def read(folder: Path) -> Dataset:
    return open_dataset(str(folder), image_size=16, split="all")


def drawn(count: int) -> Dataset:
    return shapes_dataset(16).head(count)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_layout_reads_back(layout: tuple[str, str], tmp_path: Path, numbers_in: Numbers, workers: str) -> None:
    """Images, captions, the split and the classes; images that are cut to boxes are resized."""
    format, path = layout
    size = ["--image-size", "20", "--workers", workers] if format == "cub" else []
    out = tmp_path / "packed"
    assert main(["pack", "--data", path, "--out", str(out), "--shard-samples", "4", *size]) == 0
    before, after = open_dataset(path, image_size=16, split="all"), read(out)
    assert after.problems == [] and sorted(numbers_in(after)) == list(range(12))
    for split in ("train", "heldout"):
        ours, theirs = (
            open_dataset(path, image_size=16, split=split),
            open_dataset(str(out), image_size=16, split=split),
        )
        assert list(ours.captions) == list(theirs.captions) and numbers_in(ours) == numbers_in(theirs)
        if format != "cub":
            assert [ours.read(n) for n in range(len(ours))] == [theirs.read(n) for n in range(len(theirs))]
        if before.classes is None:
            assert theirs.classes is None
        else:
            np.testing.assert_array_equal(ours.classes, theirs.classes)
    assert [entry.samples for entry in read_manifest(out)] == [4, 4, 1, 3]


def test_plain_tars_with_digests(tmp_path: Path) -> None:
    dataset = drawn(7)
    pack_shards(dataset, tmp_path / "out", shard_samples=3, progress=False)
    assert sorted(content(tmp_path / "out")) == ["00000.tar", "00001.tar", "00002.tar", "manifest.json"]
    number = 0
    for entry in read_manifest(tmp_path / "out"):
        shard = tmp_path / "out" / entry.name
        assert hashlib.sha256(shard.read_bytes()).hexdigest() == entry.sha256 and shard.stat().st_size == entry.bytes
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}
        assert len(members) == 3 * entry.samples
        for _ in range(entry.samples):
            key = f"{number:09d}"
            assert members[f"{key}.png"] == dataset.read(number)
            assert members[f"{key}.txt"].decode().splitlines() == list(dataset.captions[number])
            told = json.loads(members[f"{key}.json"])
            assert told == {"key": dataset.keys[number], "text": list(dataset.captions[number])}
            number += 1
    assert number == 7


def test_shards_are_no_larger_than_asked(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    big = [b"\xff\xd8" + noise.bytes(n) for n in (300_000, 300_000, 300_000, 600_000, 2_000_000, 10, 10)]
    keys = [f"{n}.jpg" for n in range(7)]
    dataset = Dataset(name="big", keys=keys, captions=[("x",)] * 7, read=lambda sample: big[sample])
    pack_shards(dataset, tmp_path / "out", shard_mb=1, progress=False)
    entries = read_manifest(tmp_path / "out")
    assert [entry.samples for entry in entries] == [3, 1, 1, 2]
    assert all(entry.bytes <= 2**20 + 1024 for entry in entries if entry.samples > 1)


def test_keys_that_a_tar_would_read_otherwise(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    keys = ["a.b/c.d.jpg", "a/c", "../up.jpg", "/root.jpg", "new\nline.jpg", "\\udcff.jpg", "A.jpg", "a.jpg", "x" * 400]
    dataset = Dataset(
        name="odd", keys=keys, captions=[(key.strip()[:9],) for key in keys], read=lambda sample: image_of(sample)
    )
    assert pack_shards(dataset, tmp_path / "out", progress=False) == []
    packed = read(tmp_path / "out")
    assert [packed.read(n) for n in range(9)] == [image_of(n) for n in range(9)] and not packed.problems
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        told = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith("json")]  # type: ignore[union-attr]
    assert [row["key"] for row in told] == keys


def test_what_cannot_be_packed_is_left_out_and_listed(
    captioned_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = captioned_folder(6, bad=(1, 4))
    (folder / "002.png").write_text("<html>404</html>")
    main(["pack", "--data", str(folder), "--out", str(tmp_path / "copied"), "--limit", "5"])
    assert "left out 002.png: not a JPEG, PNG, WebP or BMP image" in capsys.readouterr().err
    assert len(read(tmp_path / "copied")) == 4
    main(["pack", "--data", str(folder), "--out", str(tmp_path / "resized"), "--image-size", "8", "--workers", "2"])
    packed = read(tmp_path / "resized")
    assert len(packed) == 3
    left_out = json.loads((tmp_path / "resized" / "manifest.json").read_text())["left_out"]
    assert [row["where"] for row in left_out] == ["001.png", "002.png", "004.png"]
    for sample, name in enumerate(("000.png", "003.png", "005.png")):
        np.testing.assert_array_equal(decode(packed.read(sample), 8), decode((folder / name).read_bytes(), 8))


def test_boxes_are_cut_and_never_lost(tmp_path: Path, make_layout: Callable[[str, Path], str]) -> None:
    path = make_layout("cub", tmp_path / "birds")
    with pytest.raises(UserError, match="cut to boxes, which copies would not be: give --image-size"):
        main(["pack", "--data", path, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_no_readable_image_and_a_place_that_is_taken(captioned_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = captioned_folder(3, bad=(0, 1, 2))
    with pytest.raises(UserError, match="none of the 3 images of .* can be read; the first is 000.png: damaged"):
        main(["pack", "--data", str(folder), "--out", str(tmp_path / "out"), "--image-size", "8", "--workers", "0"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        pack_shards(drawn(2), tmp_path / "out", progress=False)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> list[int]:
    """Packing fails at the sample of this number; returns the numbers that are made."""
    made: list[int] = []
    original = module._members

    def members(dataset: Dataset, sample: int, number: int, content: bytes) -> bytes:
        if number == after:
            raise error
        made.append(number)
        return original(dataset, sample, number, content)

    monkeypatch.setattr(module, "_members", members)
    return made


@pytest.mark.parametrize("after", [0, 2, 3, 7, 9])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_pack_goes_on_after_its_last_whole_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    out = tmp_path / "out"
    pack_shards(drawn(10), tmp_path / "whole", shard_samples=3, progress=False)
    with monkeypatch.context() as patched:
        interrupt(patched, after, error)
        with pytest.raises((KeyboardInterrupt, UserError)) as caught:
            pack_shards(drawn(10), out, shard_samples=3, progress=False)
    if isinstance(error, OSError):
        assert "No space left on device; once that is put right, the same command goes on" in str(caught.value)
    assert not out.exists()
    (tmp_path / ".out.partial" / ".00009.tar.tmp").write_bytes(b"of a killed process")
    made = interrupt(monkeypatch, -1, KeyboardInterrupt())
    pack_shards(drawn(10), out, shard_samples=3, progress=False)
    assert made == list(range(max(after - 1, 0) // 3 * 3, 10)) and content(out) == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("change", ["size", "captions", "file", "shard", "progress"])
def test_what_was_begun_otherwise_is_begun_again(
    captioned_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, out = captioned_folder(8), tmp_path / "out"
    size = 5 if change == "size" else None

    def set_of() -> Dataset:
        return open_dataset(str(folder), image_size=16, split="all")

    with monkeypatch.context() as patched:
        interrupt(patched, 6, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pack_shards(set_of(), out, shard_samples=2, progress=False)
    if change == "captions":
        (folder / "001.txt").write_text("another one")
    elif change == "file":
        os.utime(folder / "001.png", ns=(1, 1))
    elif change == "shard":
        os.truncate(tmp_path / ".out.partial" / "00001.tar", 700)
    elif change == "progress":
        (tmp_path / ".out.partial" / "progress.json").write_text("[" * 100_000)
    made = interrupt(monkeypatch, -1, KeyboardInterrupt())
    pack_shards(set_of(), out, image_size=size, shard_samples=2, progress=False)
    assert made == list(range(8))
    pack_shards(set_of(), tmp_path / "whole", image_size=size, shard_samples=2, progress=False)
    assert content(out) == content(tmp_path / "whole")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    with FileLock(tmp_path / ".out.partial" / ".lock"), pytest.raises(UserError, match="another process is writing"):
        pack_shards(drawn(2), tmp_path / "out", progress=False)
