"""What a WebDataset shard holds, and where: read from a tar once, and kept in an index file from then on.

The index lies beside the shard as `.<shard>.index.json`, or in the user's cache directory where the shard's folder
cannot be written. It counts only while the shard's size and time of change are those that it was made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from fastt2i.data.captions import MAX_CAPTION_FILE, clean, field_captions, file_captions, parse_json
from fastt2i.data.dataset import Problem
from fastt2i.data.sources.helpers.folder_files import IMAGE_EXTENSIONS, MAX_IMAGE_FILE
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file
from fastt2i.files.io_errors import SystemIOError, classify_io_errors
from fastt2i.files.reading import file_stamp, leaves_folder, printable, read_file
from fastt2i.files.user_cache import user_cache

FORMAT = 2
MAX_JSON = 2**24  # bytes
MAX_HEADER = 2**20  # bytes of a member's name and what else is said of it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarSample(NamedTuple):
    """An image in a tar: the name of its member, the bytes of the tar that it is, and its captions."""

    name: str
    offset: int
    size: int
    captions: tuple[str, ...]
    kind: int | None
    """The number in `class` of its .json."""


@dataclass
class Shard:
    """The samples of a tar in its order, and what was left out."""

    samples: list[TarSample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stamp: str = ""
    """Size and time of change of the tar before it was read."""

    def report(self, where: str, what: str) -> None:
        self.problems.append(Problem(printable(where), what))


def load_shard(path: str, columns: Sequence[str]) -> Shard | None:
    """The index of a shard, if there is one that is still right. Raises OSError: the shard cannot be read."""
    expected = _header(path, columns)
    for place in _places(path):
        try:
            content = json.loads(read_file(place))
            if content["header"] == expected:
                tar_size = os.path.getsize(path)
                samples = [_sample(row, tar_size) for row in content["samples"]]
                problems = [Problem(str(where), str(what)) for where, what in content["problems"]]
                return Shard(samples, problems, str(expected["stamp"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, MemoryError):
            continue  # there is none, or something else has that name
    return None


def _sample(row: Sequence[Any], tar_size: int) -> TarSample:
    """A line of an index, which may have come with the shard. Raises ValueError: no reading of the tar makes it."""
    name, offset, size, captions, kind = row
    sample = TarSample(str(name), int(offset), int(size), tuple(captions), None if kind is None else int(kind))
    if not (0 <= sample.offset <= sample.offset + sample.size <= tar_size and sample.size <= MAX_IMAGE_FILE):
        raise ValueError(f"{sample.name} lies outside the shard")
    if not captions or tuple(clean(captions)) != sample.captions:
        raise ValueError(f"the captions of {sample.name} are not as captions are read")
    return sample


def make_shard(path: str, columns: Sequence[str]) -> Shard:
    """Read a shard and keep its index. Raises OSError: it cannot be read. UserError: it is compressed."""
    header = _header(path, columns)  # before the tar is read: if it changes meanwhile, the index does not count
    shard = read_shard(path, columns)
    shard.stamp = str(header["stamp"])
    problems = [(problem.where, problem.what) for problem in shard.problems]
    content = json.dumps({"header": header, "samples": shard.samples, "problems": problems}).encode()
    failures = []
    for place in _places(path):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
            return shard
        except OSError as error:
            failures.append(f"{place.parent}: {error.strerror or error}")
    warnings.warn(
        f"the index of {path} cannot be kept ({'; '.join(failures)}) and is made anew each time", stacklevel=2
    )
    return shard


def read_shard(path: str, columns: Sequence[str]) -> Shard:
    """Find the samples of a tar: the members of one key, which is the name up to the first dot of its last part.

    A sample has an image and captions: the lines of its `.txt`, and what its `.json` has in the first of the fields
    that are named (`txt` among them stands for the `.txt`); a whole number in the field `class` is its class. Of
    several members of one name the first counts, and of several images of one key too. Hidden members and those of
    other kinds are passed over. Nothing is written to disk, and no link is followed.
    """
    shard = Shard()
    images: dict[str, TarSample] = {}
    captions: dict[str, dict[str, None]] = {}
    kinds: dict[str, int] = {}
    seen: set[str] = set()
    with open(path, "rb") as file:
        _refuse_compressed(file, path)
        for member in _members(file, shard):
            name = posixpath.normpath(member.name)
            folder, base = posixpath.split(name)
            stem, _, extension = base.partition(".")
            if member.isdir():
                continue
            key, extension = posixpath.join(folder, stem), extension.lower()
            wanted = bool(stem) and (f".{extension}" in IMAGE_EXTENSIONS or extension in ("txt", "json"))
            if problem := _unusable(member, wanted):
                shard.report(member.name, problem)
            elif not wanted:
                continue
            elif name in seen:
                shard.report(name, "there is a member of this name before it, which is taken")
            elif extension == "txt":
                file.seek(member.offset_data)
                content = file.read(min(member.size, MAX_CAPTION_FILE)) if "txt" in columns else b""
                captions.setdefault(key, {}).update(dict.fromkeys(file_captions(content)))
            elif extension == "json":
                file.seek(member.offset_data)
                row = _row(file, member, shard)
                captions.setdefault(key, {}).update(dict.fromkeys(clean(field_captions(row, columns) or ())))
                if type(row.get("class")) is int and abs(row["class"]) < 2**63:
                    kinds[key] = row["class"]
            elif key in images:
                shard.report(name, f"its sample has the image {printable(images[key].name)} already, which is taken")
            else:
                images[key] = TarSample(name, member.offset_data, member.size, (), None)
            seen.add(name)
    for key, image in images.items():
        if own := tuple(captions.get(key, ())):
            shard.samples.append(image._replace(name=printable(image.name), captions=own, kind=kinds.get(key)))
        else:
            shard.report(image.name, "an image without a caption")
    for key in captions:
        if key not in images:
            shard.report(key, "captions without an image")
    return shard


def _header(path: str, columns: Sequence[str]) -> dict[str, object]:
    """What an index has to be made with to count."""
    return {"format": FORMAT, "stamp": file_stamp(path), "columns": list(columns)}


def _places(path: str) -> list[Path]:
    shard = Path(os.path.abspath(path))
    digest = hashlib.sha256(os.fsencode(shard)).hexdigest()[:32]
    return [shard.with_name(f".{shard.name}.index.json"), user_cache("shards") / f"{digest}.json"]


def _refuse_compressed(file: BinaryIO, path: str) -> None:
    start = file.read(6)
    file.seek(0)
    for mark, method in _COMPRESSED.items():
        if start.startswith(mark):
            raise UserError(
                f"{path} is compressed with {method}, so its images cannot be read one by one: "
                "decompress it to a plain .tar first (images are compressed already)"
            )


def _members(file: BinaryIO, shard: Shard) -> Iterator[tarfile.TarInfo]:
    """The members that are wholly there; a problem where the tar ends before its mark of the end."""
    size, end, count = os.fstat(file.fileno()).st_size, -1, 0
    try:
        headers = cast("BinaryIO", _Headers(file))
        with classify_io_errors(file.name):
            tar = tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except SystemIOError:
        raise
    except Exception as error:  # a damaged header can make tarfile raise almost anything
        shard.report("", f"not a tar: {_line(error)}")
        return
    while True:
        try:
            with classify_io_errors(file.name):
                member = tar.next()
        except SystemIOError:
            raise
        except Exception as error:
            shard.report("", f"damaged after {count} members: {_line(error)}")
            return
        if member is None:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                shard.report("", f"cut short or damaged after {count} members")
            return
        if member.size < 0 or member.offset_data <= end:  # would lead in a circle
            shard.report("", f"damaged after {count} members: sizes that cannot be")
            return
        if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
            shard.report(member.name, f"cut short: the tar ends within this member, after {count} whole ones")
            return
        end, count = member.offset_data, count + 1
        yield member


@dataclass(frozen=True)
class _Headers:
    """A tar as tarfile reads it, which trusts what a header says of its own length: some may fill the memory."""

    file: BinaryIO

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self.file.read(size)

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _unusable(member: tarfile.TarInfo, wanted: bool) -> str | None:
    """Why a member may not be read; None where it may."""
    if member.issym() or member.islnk():
        return "a link; such are not followed"
    if not member.isreg():
        return "neither a file nor a folder"
    if ".." in member.name.split("/") or leaves_folder(member.name):
        return "its name leaves the folder"
    if wanted and member.issparse():
        return "a sparse file; such are not read"
    if wanted and member.size > MAX_IMAGE_FILE:
        return f"larger than {MAX_IMAGE_FILE >> 20} MiB"
    return None


def _row(file: BinaryIO, member: tarfile.TarInfo, shard: Shard) -> dict[str, Any]:
    """The object in a .json that starts where the file stands; empty and a problem where it is none."""
    if member.size > MAX_JSON:
        shard.report(member.name, f"larger than {MAX_JSON >> 20} MiB")
        return {}
    try:
        row = parse_json(file.read(member.size))
    except ValueError as error:
        shard.report(member.name, str(error))
        return {}
    if not isinstance(row, dict):
        shard.report(member.name, f"not a JSON object but {type(row).__name__}")
        return {}
    return row


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
