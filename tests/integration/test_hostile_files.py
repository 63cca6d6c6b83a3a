"""Files made to do harm: each is refused with its reason, quickly, and without filling the memory or the disk."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from fastt2i.data.captions import clean
from fastt2i.data.dataset import Dataset
from fastt2i.data.open import open_dataset
from fastt2i.data.sources import parquet as parquet_module
from fastt2i.errors import UserError

MakeTar = Callable[..., Path]
MembersOf = Callable[[int], list[tuple[str, bytes]]]
REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    """No test of these writes to the user's."""


def problems(dataset: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in dataset.problems}


def encode(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, format)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_jpeg() -> bytes:
    content = bytearray(encode("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def huge_webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def huge_bmp() -> bytes:
    content = bytearray(encode("BMP"))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(content)


def huge_gif() -> bytes:
    return b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + encode("GIF")[10:]


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


ZEROS = zlib.compress(bytes(2**29), 9)  # half a mebibyte that unpacks to half a gibibyte
# The beginnings of the reasons, each of one check alone: by the header, while parts are unpacked, and by the format.
LARGE, UNPACKS = "absurdly large: ", "damaged: Decompressed data too large"
NOT_READ = "not a JPEG, PNG, WebP or BMP image$"
BOMBS = {
    "png": (png(header(60_000, 60_000), (b"IDAT", ZEROS), (b"IEND", b"")), LARGE),
    "png-long": (png(header(2**31 - 1, 1), (b"IDAT", ZEROS), (b"IEND", b"")), LARGE),
    "png-text": (png(header(8, 8), (b"zTXt", b"k\0\0" + ZEROS), (b"IDAT", ZEROS), (b"IEND", b"")), UNPACKS),
    "png-profile": (png(header(8, 8), (b"iCCP", b"k\0\0" + ZEROS), (b"IEND", b"")), UNPACKS),
    "png-beyond-ours": (
        png(header(11600, 11600), (b"IDAT", ZEROS), (b"IEND", b"")),
        "absurdly large: 11600 x 11600 pixels, more than 134217728$",
    ),
    "jpeg": (huge_jpeg(), LARGE),
    "webp-canvas": (huge_webp(b"VP8X", bytes([2, 0, 0, 0]) + b"\xfe\xff\xff" * 2), LARGE),
    "webp-lossless": (huge_webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(64)), LARGE),
    "webp-lossy": (huge_webp(b"VP8 ", b"\x30\1\0\x9d\1\x2a\xff\x3f\xff\x3f" + bytes(64)), LARGE),
    "bmp": (huge_bmp(), LARGE),
    "gif": (huge_gif(), NOT_READ),
    "tiff": (encode("TIFF"), NOT_READ),
}

DECODE = """
import re, resource, sys, time
from pathlib import Path
from fastt2i.data.decode import BadImage, decode
decode(Path(sys.argv[2]).read_bytes(), 32)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    decode(Path(sys.argv[1]).read_bytes(), 32)
    print("decoded")
except BadImage as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_decompression_bombs(kind: str, tmp_path: Path) -> None:
    content, reason = BOMBS[kind]
    (tmp_path / "bomb").write_bytes(content)
    (tmp_path / "small").write_bytes(encode("PNG"))
    arguments = [sys.executable, "-c", DECODE, str(tmp_path / "bomb"), str(tmp_path / "small")]
    said = subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    *told, figures = said.splitlines()
    kilobytes, seconds = figures.split()
    assert re.match(reason, " ".join(told)), said
    assert int(kilobytes) < 100_000 and float(seconds) < 2


def test_captions_are_fit_for_terminals_and_tokenizers() -> None:
    odd = "a\x1b[31mred\x1b]0;title\x07 \x08bird\x7f\x9b2J\0end\u2028x\ud800"
    (caption,) = clean([odd])
    assert caption == "a [31mred ]0;title bird 2J end x"
    assert list(clean(["\0\x01\x1b", "\x7f \x85"])) == []


def test_captions_of_megabytes_cost_little() -> None:
    start = time.perf_counter()
    (caption,) = clean(["\x1b" * 3990 + "red bird " + "x" * 50_000_000])
    assert caption == "red bird x" and time.perf_counter() - start < 1


def test_duplicate_names_in_metadata_join(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(1))
    rows = [
        {"file_name": name, "text": text} for name, text in (("a.jpg", "one"), ("./a.jpg", "two"), ("a.jpg", "one"))
    ]
    rows_text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_text(rows_text + '{"file_name": "x", "file_name": "a.jpg", "text": "three"}\n')
    dataset = open_dataset(str(tmp_path), image_size=16, split="all")
    assert list(dataset) == [("a.jpg", ("one", "two", "three"))] and problems(dataset) == {}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_larger_than_memory_is_not_read(tmp_path: Path, image_of: Callable[..., bytes], name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(1))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**40)
    dataset = open_dataset(str(tmp_path), "folder", image_size=16, split="all")
    assert problems(dataset) == {name: "cannot be read: it is larger than 2 GiB"} and len(dataset) == 1


def test_cocos_captions_larger_than_memory_are_one_sentence(
    tmp_path: Path, make_layout: Callable[[str, Path], str]
) -> None:
    path = make_layout("coco", tmp_path / "coco")
    os.truncate(tmp_path / "coco" / "annotations" / "captions_val2014.json", 2**40)
    with pytest.raises(UserError, match="captions_val2014.json cannot be read: it is larger than 2 GiB"):
        open_dataset(path, image_size=16)


def test_names_that_are_not_utf8_are_no_other_files_names(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    stems = ("\udcff", "\\udcff", "\\\\udcff", "\\\udcff", "\\x")
    for number, stem in enumerate(stems):
        (tmp_path / f"{stem}.jpg").write_bytes(image_of(number))
        (tmp_path / f"{stem}.txt").write_text(f"number {number}")
    dataset = open_dataset(str(tmp_path), image_size=16, split="all")
    assert len(set(dataset.keys)) == len(stems) and not dataset.problems
    for sample, own in enumerate(dataset.captions):
        assert dataset.read(sample) == image_of(int(own[0].split()[1]))


def test_a_pipe_that_takes_the_place_of_an_image(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(1))
    (tmp_path / "a.txt").write_text("one")
    dataset = open_dataset(str(tmp_path), image_size=16, split="all")
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        dataset.read(0)


@pytest.fixture
def readable_place() -> Iterator[Path]:
    """A folder that others may look into, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may read less")
def test_what_may_not_be_read(readable_place: Path, image_of: Callable[..., bytes]) -> None:
    for name in ("a", "b", "c/d"):
        (readable_place / name).parent.mkdir(exist_ok=True)
        (readable_place / f"{name}.jpg").write_bytes(image_of(1))
        (readable_place / f"{name}.txt").write_text("one")
    (readable_place / "b.txt").chmod(0)
    (readable_place / "a.jpg").chmod(0)
    (readable_place / "c").chmod(0)
    os.seteuid(65534)
    try:
        dataset = open_dataset(str(readable_place), "folder", image_size=16, split="all")
        found = problems(dataset)
        with pytest.raises(PermissionError):
            dataset.read(0)
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            open_dataset(str(readable_place / "c"), "folder", image_size=16)
    finally:
        os.seteuid(0)
    assert found["b.txt"] == found["c"] == "cannot be read: Permission denied" and list(dataset.keys) == ["a.jpg"]


def test_folders_that_go_deep(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    folders = [tmp_path / "deep"]
    folders[0].mkdir()
    for _ in range(1200):
        folders.append(folders[-1] / "x")
        folders[-1].mkdir()
    files = {folders[-1] / "a.jpg": image_of(1), folders[-1] / "a.txt": b"one"}
    for file, content in files.items():
        file.write_bytes(content)
    (folders[-1] / "loop").symlink_to(tmp_path)
    try:
        dataset = open_dataset(str(tmp_path), image_size=16, split="all")
        assert dataset.keys == [f"deep/{'x/' * 1200}a.jpg"] and dataset.read(0) == image_of(1)
    finally:  # shutil and pytest would need a frame for each folder
        for file in (*files, folders[-1] / "loop"):
            file.unlink()
        for folder in reversed(folders):
            folder.rmdir()


def sparse(name: str, size: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members of a few bytes that claim to be of this size, as GNU tar has written them since 1990, 2003 and 2006."""
    old = tarfile.TarInfo(f"old-{name}")
    old.type, old.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    members = [(old, bytes(block) + bytes(512))]
    for version, headers in {
        "new": {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(size)},
        "newest": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)},
    }.items():
        member = tarfile.TarInfo(f"{version}-{name}")
        member.pax_headers = headers
        member.size = 1024
        members.append((member, member.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)))
    return members


def test_sparse_members(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf) -> None:
    whole = make_tar(tmp_path / "whole.tar", members_of(3)).read_bytes()
    parts = [content for extension in ("jpg", "txt") for _, content in sparse(f"a.{extension}", 2**40)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + whole)
    dataset = open_dataset(str(tmp_path / "a.tar"), image_size=16, split="all")
    assert list(dataset.keys) == ["a.tar/000000003.jpg"]
    found = problems(dataset)
    assert {what for where, what in found.items() if where.endswith("jpg")} == {"a sparse file; such are not read"}
    assert len(found) == 6


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_names_that_claim_to_fill_the_memory(
    tmp_path: Path, make_tar: MakeTar, members_of: MembersOf, kind: bytes
) -> None:
    """The tar is sparse on the disk: it takes some kilobytes, and says that a member's name has eight gigabytes."""
    header = tarfile.TarInfo("name")
    header.type, header.size = kind, 2**33 - 512
    whole = make_tar(tmp_path / "a.tar", members_of(3)).read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    (tmp_path / "a.tar").write_bytes(whole + header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(tmp_path / "a.tar", len(whole) + 2**33 + 10_240)
    start = time.monotonic()
    dataset = open_dataset(str(tmp_path / "a.tar"), image_size=16, split="all")
    assert list(dataset.keys) == ["a.tar/000000003.jpg"] and time.monotonic() - start < 5
    (what,) = problems(dataset).values()
    assert "damaged after 3 members: a header of" in what


def test_names_within_names_without_end(tmp_path: Path, make_tar: MakeTar, members_of: MembersOf) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 5
    chain = (header.tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")) * 20_000
    whole = make_tar(tmp_path / "a.tar", members_of(3)).read_bytes().rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole + bytes(-len(whole) % 512) + chain)
    dataset = open_dataset(str(tmp_path / "a.tar"), image_size=16, split="all")
    assert list(dataset.keys) == ["a.tar/000000003.jpg"] and "damaged after 3 members" in next(
        iter(problems(dataset).values())
    )


def test_a_class_counts_where_every_sample_has_one(
    tmp_path: Path, make_tar: MakeTar, image_of: Callable[..., bytes]
) -> None:
    def shard(name: str, classes: list[object]) -> Dataset:
        members = []
        for number, kind in enumerate(classes):
            told = {"text": f"number {number}"} | ({} if kind is None else {"class": kind})
            members += [(f"{number}.jpg", image_of(number)), (f"{number}.json", json.dumps(told).encode())]
        return open_dataset(str(make_tar(tmp_path / name, members)), image_size=16, split="all")

    assert shard("all.tar", [3, 0, 3, -1]).classes.tolist() == [3, 0, 3, -1]  # type: ignore[union-attr]
    for number, odd in enumerate([None, "3", 3.0, True, 2**63, [3]]):
        assert shard(f"{number}.tar", [3, odd]).classes is None


def test_a_table_of_a_million_copies_of_one_image(
    tmp_path: Path, image_of: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    content = image_of(1) + bytes(100_000)
    for name, images, texts in (
        ("images", [content], ["one"]),
        ("texts", [image_of(1)], ["one " * 25_000]),
    ):
        count = 20_000
        columns = {
            column: pyarrow.DictionaryArray.from_arrays(
                pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array(values)
            )
            for column, values in (("image", images), ("text", texts))
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet", store_schema=False)
        assert (tmp_path / f"{name}.parquet").stat().st_size < 300_000
    monkeypatch.setattr(parquet_module, "MAX_GROUP", 2**26)
    dataset = open_dataset(str(tmp_path / "images.parquet"), image_size=16, split="all")
    with pytest.raises(OSError, match="the row group unpacks to more than"):
        dataset.read(0)
    with pytest.raises(UserError, match="the captions of row group 0 cannot be read: the row group unpacks to more"):
        open_dataset(str(tmp_path / "texts.parquet"), image_size=16)
    assert pyarrow.total_allocated_bytes() < 2**27


def test_a_page_that_unpacks_to_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": [bytes(2**27)], "text": ["one"]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    monkeypatch.setattr(parquet_module, "MAX_GROUP", 2**26)
    dataset = open_dataset(str(tmp_path / "a.parquet"), image_size=16, split="all")
    before = pyarrow.default_memory_pool().max_memory()
    with pytest.raises(OSError, match="the row group unpacks to more than"):
        dataset.read(0)
    assert pyarrow.default_memory_pool().max_memory() == before


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_shards_that_change_after_they_were_indexed(
    tmp_path: Path, make_layout: Callable[[str, Path], str], format: str
) -> None:
    dataset = open_dataset(make_layout(format, tmp_path / "set"), image_size=16, split="all")
    for shard in dataset.shards:
        content = bytearray(Path(shard).read_bytes())
        content[len(content) // 2] ^= 1
        Path(shard).write_bytes(content)
        os.utime(shard, ns=(7, 7))
    for sample in range(len(dataset)):
        with pytest.raises(OSError, match="has changed since"):
            dataset.read(sample)
