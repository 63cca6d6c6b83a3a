"""Tars of every kind and in every state, and the index that is kept of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.helpers.tar_index import read_shard
from fastt2i.data.sources.registry import detect_format
from fastt2i.data.sources.webdataset import tar_dataset
from fastt2i.errors import UserError

Members = list[tuple[str, bytes]]
MembersOf = Callable[[int], Members]
Numbers = Callable[[Dataset], list[int]]
MakeTar = Callable[..., Path]
COLUMNS = ("txt", "text", "caption")


def problems(index: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in index.problems}


def test_lists_and_patterns_of_shards(shards: Path, numbers_in: Numbers) -> None:
    braces = f"{shards}/train-{{00000..00001}}.tar"
    assert (
        detect_format(braces)
        == detect_format(f"{braces}::{shards}/test-00000.tar")
        == detect_format(str(shards))
        == "webdataset"
    )
    index = tar_dataset(braces, "all")
    assert numbers_in(index) == list(range(9)) and index.keys[0] == "train-00000.tar/000000000.jpg"
    assert numbers_in(tar_dataset(f"{shards}/te*.tar::{braces}", "all")) == [9, 10, 11, *range(9)]
    assert numbers_in(tar_dataset(f"{shards}/{{test,train}}-00000.tar", "heldout")) == [9, 10, 11]
    assert 0 < len(tar_dataset(braces, "heldout", 0.4)) < 9
    with pytest.raises(UserError, match=r"there is no file .*/train-00002\.tar; shards are local files"):
        tar_dataset(f"{shards}/train-{{00000..00002}}.tar")


def test_numbers_in_braces_keep_their_width(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf) -> None:
    for number in range(8, 12):
        make_tar(tmp_path / f"a{number}.tar", members_of(number))
        make_tar(tmp_path / "b" / f"{number:03d}.tar", members_of(number))
    assert len(tar_dataset(f"{tmp_path}/a{{11..8}}.tar", "all")) == 4
    assert len(tar_dataset(f"{tmp_path}/{{b,b}}/{{008..011}}.tar", "all")) == 4


def test_captions(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, image_of: Callable[..., bytes]) -> None:
    members = [("a/1.jpg", image_of(1)), ("a/1.txt", b"one\n\n uno \n"), ("b/1.PNG", image_of(2, "PNG"))]
    members += [
        ("b/1.json", b'{"caption": "two", "prompt": "zwei", "key": 3}'),
        ("c.x.jpg", image_of(3)),
        ("c.txt", b"c"),
    ]
    members += [("./d.webp", image_of(4, "WEBP")), ("./d.txt", b"four\xff"), ("d.json", b'{"text": ["vier", "four"]}')]
    path = str(make_tar(tmp_path / "a.tar", members))
    index = tar_dataset(path, "all")
    assert list(index) == [
        ("a.tar/a/1.jpg", ("one", "uno")),
        ("a.tar/b/1.PNG", ("two",)),
        ("a.tar/d.webp", ("vier", "four")),
    ]
    assert index.read(1) == image_of(2, "PNG")
    assert {where: what[:30] for where, what in problems(index).items()} == {
        "a.tar/c.x.jpg": "an image without a caption",
        "a.tar/c": "captions without an image",
        "a.tar/d.txt": "captions that are not UTF-8 (1",
    }
    assert list(tar_dataset(path, "all", text_column="prompt")) == [("a.tar/b/1.PNG", ("zwei",))]
    assert len(tar_dataset(path, "all", text_column="txt")) == 1


def test_members_in_any_order(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, numbers_in: Numbers) -> None:
    members = [member for number in range(6) for member in members_of(number)]
    path = make_tar(tmp_path / "a.tar", sorted(members, key=lambda member: member[0][::-1]))
    index = tar_dataset(str(path), "all")
    assert sorted(numbers_in(index)) == list(range(6)) and not index.problems


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_that_are_long_or_not_utf8(
    tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, image_of: Callable[..., bytes], format: int
) -> None:
    long = "x" * (90 if format == tarfile.USTAR_FORMAT else 3000)
    raw = os.fsdecode(b"caf\xe9-\xff")
    members = []
    for number, name in enumerate((long, raw, "日本語", "with space", "new\nline")):
        members += [(f"{name}.jpg", image_of(number)), (f"{name}.txt", f"number {number}".encode())]
    index = tar_dataset(str(make_tar(tmp_path / "a.tar", members, format)), "all")
    assert [own for _, own in index] == [(f"number {number}",) for number in range(5)]
    assert [index.read(number) for number in range(5)] == [image_of(number) for number in range(5)]
    assert index.keys[0] == f"a.tar/{long}.jpg" and "a.tar/日本語.jpg" in index.keys
    for key in index.keys:
        key.encode()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_nothing_of_a_tar_leads_elsewhere(
    tmp_path: Path, members_of: MembersOf, image_of: Callable[..., bytes]
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for name in ("../up", "/absolute", "a/../../b", "a/../inside"):
            add(f"{name}.jpg", image_of(1))
            add(f"{name}.txt", b"one")
        tar.addfile(special("link.jpg", tarfile.SYMTYPE, "/etc/hostname"))
        tar.addfile(special("link.txt", tarfile.SYMTYPE, "../secret"))
        tar.addfile(special("hard.jpg", tarfile.LNKTYPE, "0.jpg"))
        tar.addfile(special("linkfolder", tarfile.SYMTYPE, "/"))
        tar.addfile(special("device.jpg", tarfile.CHRTYPE))
        tar.addfile(special("pipe.txt", tarfile.FIFOTYPE))
        tar.addfile(special("folder.jpg", tarfile.DIRTYPE))
        for name, content in members_of(0):
            add(name, content)
    before = sorted(tmp_path.rglob("*"))
    index = tar_dataset(str(path), "all")
    assert list(index.keys) == ["a.tar/000000000.jpg"]
    found = problems(index)
    link, kind, leaves = "a link; such are not followed", "neither a file nor a folder", "its name leaves the folder"
    assert {what: sum(w == what for w in found.values()) for what in (link, kind, leaves)} == {
        link: 4,
        kind: 2,
        leaves: 8,
    }
    new = set(tmp_path.rglob("*")) - set(before) - set((tmp_path / "cache").rglob("*")) - {tmp_path / "cache"}
    assert new == {tmp_path / ".a.tar.index.json"}


def test_names_and_keys_that_come_twice(
    tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, image_of: Callable[..., bytes]
) -> None:
    """The first counts, within a shard by name and over shards where size and captions agree too."""
    twice = [("1.jpg", image_of(1)), ("1.txt", b"one"), ("1.jpg", image_of(2)), ("1.txt", b"two"), ("./1.png", b"x")]
    make_tar(tmp_path / "a.tar", [*twice, *members_of(5)])
    make_tar(tmp_path / "b.tar", [*members_of(5), ("1.jpg", image_of(3)), ("1.txt", b"three")])
    index = tar_dataset(str(tmp_path), "all")
    assert next(iter(index)) == ("a.tar/1.jpg", ("one",)) and index.read(0) == image_of(1)
    assert list(index.keys) == ["a.tar/1.jpg", "a.tar/000000005.jpg", "b.tar/1.jpg"]
    assert index.read(2) == image_of(3) and index.captions[2] == ("three",)
    member = "there is a member of this name before it, which is taken"
    assert problems(index) == {
        "a.tar/1.jpg": member,
        "a.tar/1.txt": member,
        "a.tar/1.png": "its sample has the image 1.jpg already, which is taken",
        "b.tar/000000005.jpg": "of the same name, size and captions as the one in a.tar, which is taken",
    }


def test_bad_members(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, image_of: Callable[..., bytes]) -> None:
    members: Members = []
    bad = {"a": b"{", "b": b"[1]", "c": b"\xff\xfe\x00", "d": b'{"text": 7}', "e": b"[" * 100_000, "f": b""}
    for name, content in bad.items():
        members += [(f"{name}.jpg", image_of(1)), (f"{name}.json", content)]
    members += [("g.jpg", image_of(1)), ("._g.jpg", b"resource fork"), ("g.txt", b"word " * 1_000_000)]
    members += [("h.jpg", image_of(1)), ("h.json", json.dumps({"text": "x" * 3_000_000}).encode())]
    members += [("i.jpg", image_of(1)), ("i.json", b" " * (2**24 + 1)), ("note.md", b"x"), ("noextension", b"x")]
    index = tar_dataset(str(make_tar(tmp_path / "a.tar", members)), "all")
    assert list(index.keys) == ["a.tar/g.jpg", "a.tar/h.jpg"]
    assert [len(own[0]) for own in index.captions] == [1999, 2000]
    found = problems(index)
    assert all(found[f"a.tar/{name}.json"].startswith("not JSON: ") for name in "acef")
    assert found["a.tar/b.json"] == "not a JSON object but list" and found["a.tar/i.json"] == "larger than 16 MiB"
    assert all(found[f"a.tar/{name}.jpg"] == "an image without a caption" for name in "abcdefi")


@pytest.mark.parametrize("cut", ["in an image", "in a header", "between members", "after the first block"])
def test_a_truncated_tar_gives_what_is_before_the_cut(
    tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, numbers_in: Numbers, cut: str
) -> None:
    path = make_tar(tmp_path / "a.tar", [member for number in range(6) for member in members_of(number)])
    with tarfile.open(path) as tar:
        image = tar.getmember("000000004.jpg")
    place = {"in an image": image.offset_data + 100, "in a header": image.offset + 77, "between members": image.offset}
    os.truncate(path, place.get(cut, 512))
    if cut == "after the first block":
        with pytest.raises(UserError, match=r"there is no image with a caption in .* \(a\.tar.*: .*cut short"):
            tar_dataset(str(path))
        return
    index = tar_dataset(str(path), "all")
    assert numbers_in(index) == [0, 1, 2, 3]
    assert len(index.problems) == 1 and "cut short" in index.problems[0].what


@pytest.mark.parametrize("content", [b"", b"not a tar", b"x" * 2000, b"\0" * 10240])
def test_what_is_no_tar(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="there is no image with a caption in ") as caught:
        tar_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
    make_tar(tmp_path / "b.tar", members_of(3))
    assert list(tar_dataset(str(tmp_path), "all").keys) == ["b.tar/000000003.jpg"]


def test_sizes_that_lead_in_a_circle(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf) -> None:
    path = make_tar(tmp_path / "a.tar", members_of(1), tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[-1].offset
    content[start + 124 : start + 136] = (-1024).to_bytes(12, "big", signed=True)
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path.write_bytes(content)
    assert "damaged" in read_shard(str(path), COLUMNS).problems[-1].what


@given(data=st.data())
def test_flipped_bytes_break_nothing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("flipped") / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.txt", "b" * 200 + ".jpg", "b" * 200 + ".json"):
            member = tarfile.TarInfo(name)
            member.size = 12
            tar.addfile(member, io.BytesIO(b'{"text":"b"}'))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, 5000))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    shard = read_shard(str(path), COLUMNS)
    for sample in shard.samples:
        assert 0 < sample.offset <= len(content) - sample.size and sample.name.encode()
    for problem in shard.problems:
        (problem.where + problem.what).encode()


@pytest.mark.parametrize(("extension", "compress"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
@pytest.mark.parametrize("renamed", [False, True])
def test_compressed_tars_are_refused_with_what_to_do(
    shards: Path, tmp_path: Path, extension: str, compress: object, renamed: bool
) -> None:
    name = "c.tar" if renamed else f"c.tar.{extension}"
    path = tmp_path / "compressed" / name
    path.parent.mkdir()
    path.write_bytes(compress.compress((shards / "train-00000.tar").read_bytes()))  # type: ignore[attr-defined]
    assert detect_format(str(path.parent)) == "webdataset"
    with pytest.raises(UserError, match=r"c\.tar.* is compressed with .*: decompress it to a plain \.tar first"):
        tar_dataset(str(path.parent))


def test_a_shard_that_changes_is_an_error_of_the_image(shards: Path) -> None:
    index = tar_dataset(str(shards), "all")
    os.truncate(shards / "test-00000.tar", 600)
    with pytest.raises(OSError, match="the shard has changed since its index was made"):
        index.read(0)


def test_images_beside_a_tar_are_told_apart_by_the_user(
    tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, image_of: Callable[..., bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(5))
    (tmp_path / "a.txt").write_text("five")
    make_tar(tmp_path / "backup.tar", members_of(1))
    with pytest.raises(UserError, match="looks like several layouts"):
        detect_format(str(tmp_path))


def test_names_with_dots(tmp_path: Path, make_tar: MakeTar, image_of: Callable[..., bytes]) -> None:
    members = [("2023.05.01_cat.jpg", image_of(1)), ("2023.05.01_cat.txt", b"a cat"), ("b.jpg", image_of(2))]
    members += [("b.txt", b"a dog"), ("b.depth.png", image_of(3, "PNG")), ("x.image.jpg", image_of(4))]
    members += [("x.caption.txt", b"lost"), ("y.gif", b"GIF89a"), ("z.avif", b"")]
    index = tar_dataset(str(make_tar(tmp_path / "a.tar", members)), "all")
    assert list(index) == [("a.tar/2023.05.01_cat.jpg", ("a cat",)), ("a.tar/b.jpg", ("a dog",))]
    assert {where: what.split(":")[0] for where, what in problems(index).items()} == {
        "a.tar/x.image.jpg": "an image without a caption",
        "a.tar/x.caption": "captions without an image",
        "a.tar/y.gif": "not read",
        "a.tar/z.avif": "not read",
    }


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_lines_that_the_json_has_as_one_caption_are_one(
    tmp_path: Path, make_tar: MakeTar, image_of: Callable[..., bytes], order: tuple[int, ...]
) -> None:
    table = b'{"caption": "red car\\nfor sale"}'
    members = [("1.jpg", image_of(1)), ("1.txt", b"red car\nfor sale"), ("1.json", table)]
    path = make_tar(tmp_path / "a.tar", [members[place] for place in order])
    assert list(tar_dataset(str(path), "all")) == [("a.tar/1.jpg", ("red car for sale",))]


def test_a_sample_stays_on_its_side_when_shards_of_another_folder_join(
    tmp_path: Path, make_tar: MakeTar, image_of: Callable[..., bytes]
) -> None:
    def put(folder: str, name: str, count: int) -> str:
        members = [
            (f"{i:04}{end}", own) for i in range(count) for end, own in ((".jpg", image_of(1)), (".txt", b"%d" % i))
        ]
        (tmp_path / folder).mkdir(exist_ok=True)
        make_tar(tmp_path / folder / name, members)
        return str(tmp_path / folder)

    def heldout(path: str) -> set[str]:
        return {key.rpartition("/")[2] for key in tar_dataset(path, "heldout", 0.1).keys if "first.tar" in key}

    first, other = put("a", "first.tar", 300), put("b", "other.tar", 5)
    alone = heldout(first)
    assert 15 <= len(alone) <= 45
    assert heldout(f"{first}::{other}") == heldout(f"{other}::{first}") == heldout(str(tmp_path)) == alone


@pytest.mark.parametrize("folder", ["raw[1]", "a::b", "x{1,2}"])
def test_a_folder_whose_name_has_signs_of_a_pattern(
    folder: str,
    tmp_path: Path,
    cache: Path,
    make_tar: Callable[..., Path],
    members_of: Callable[[int], list[tuple[str, bytes]]],
) -> None:
    (tmp_path / folder).mkdir()
    make_tar(tmp_path / folder / "0.tar", members_of(2))
    paths = [tmp_path / folder, tmp_path / folder / "0.tar"]
    if "[" in folder:
        paths.append(tmp_path / folder / "*.tar")
    for path in paths:
        assert detect_format(str(path)) == "webdataset" and len(tar_dataset(str(path), "all"))


def test_accents_of_names_in_tars_may_be_composed_or_not(
    tmp_path: Path, cache: Path, make_tar: Callable[..., Path], members_of: Callable[[int], list[tuple[str, bytes]]]
) -> None:
    image = members_of(0)[0][1]
    make_tar(tmp_path / "0.tar", [("cafe\u0301.jpg", image), ("caf\u00e9.txt", b"a cup")])
    dataset = tar_dataset(str(tmp_path), "all")
    assert list(dataset.captions) == [("a cup",)] and not dataset.problems
