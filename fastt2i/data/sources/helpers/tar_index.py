"""What a WebDataset shard holds, and where: read from a tar once, and kept in an index file from then on.

The index lies beside the shard as `.<shard>.index.json`, or in the user's cache directory where the shard's folder
cannot be written. It counts only while the shard's size and time of change are those that it was made with.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import posixpath
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from fastt2i.data.captions import MAX_CAPTION_FILE, FileCaptions, clean, field_captions, file_captions, parse_json
from fastt2i.data.dataset import NO_CAPTION, Problem
from fastt2i.data.sources.helpers.folder_files import IMAGE_EXTENSIONS, MAX_IMAGE_FILE, is_unread_image
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file
from fastt2i.files.io_errors import SystemIOError, classify_io_errors
from fastt2i.files.reading import composed, file_stamp, leaves_folder, printable, read_file
from fastt2i.files.sealed import sealed, unsealed
from fastt2i.files.user_cache import user_cache

FORMAT = 5
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
            content = json.loads(unsealed(read_file(place)))
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
    content = json.dumps({"header": header, "samples": shard.samples, "problems": problems})
    failures = []
    for place in _places(path):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, sealed(content.encode()))
            return shard
        except OSError as error:
            failures.append(f"{place.parent}: {error.strerror or error}")
    warnings.warn(
        f"the index of {path} cannot be kept ({'; '.join(failures)}) and is made anew each time", stacklevel=2
    )
    return shard


def read_shard(path: str, columns: Sequence[str]) -> Shard:
    """Find the samples of a tar: the members of one key.

    A sample has an image and captions: the lines of its `.txt`, or all of it where its `.json` has that as one caption,
    and what its `.json` has in the first of the fields that are named (`txt` among them stands for the `.txt`); a whole
    number in the field `class` is its class. The key is the name up to the first dot of its last part; where what
    follows is no extension that is read, up to the last dot (`2023.05.01_cat.jpg`), unless the sample of the first dot
    has an image: then the member is one of the others that a sample may have (`000.depth.png`).
    Of several members of one name the first counts, and of several images of one key too. Hidden members and those of
    other kinds are passed over. Nothing is written to disk, and no link is followed.
    """
    reading = _Reading(path, columns)
    with open(path, "rb") as file:
        _refuse_compressed(file, path)
        for member in _members(file, reading.shard):
            if not member.isdir():
                reading.add(file, member)
    return reading.finish()


@dataclass
class _Reading:
    """What has been found in a tar so far, by the keys of its samples."""

    path: str
    columns: Sequence[str]
    shard: Shard = field(default_factory=Shard)
    images: dict[str, TarSample] = field(default_factory=dict)
    texts: dict[str, FileCaptions] = field(default_factory=dict)
    captions: dict[str, dict[str, None]] = field(default_factory=dict)
    """Of .json members."""
    kinds: dict[str, int] = field(default_factory=dict)
    first_dot: dict[str, str] = field(default_factory=dict)
    """The key up to the first dot of each key that has dots in it."""
    text_last: set[str] = field(default_factory=set)
    """The keys whose .txt comes after their .json: captions keep the order of the members."""
    seen: set[str] = field(default_factory=set)

    def add(self, file: BinaryIO, member: tarfile.TarInfo) -> None:
        """Enter a member, or what is wrong with it."""
        name = posixpath.normpath(member.name)
        key, extension = self._key(name)
        if problem := _unusable(member, wanted=bool(extension)):
            self.shard.report(member.name, problem)
        elif not extension:
            if is_unread_image(name):
                self.shard.report(name, f"not read: images are {', '.join(IMAGE_EXTENSIONS)}")
            return
        elif name in self.seen:
            self.shard.report(name, "there is a member of this name before it, which is taken")
        elif extension == "txt":
            file.seek(member.offset_data)
            content = file.read(min(member.size, MAX_CAPTION_FILE)) if "txt" in self.columns else b""
            found = file_captions(content)
            before = self.texts.get(key)
            self.texts[key] = FileCaptions([*before.lines, *found.lines], "", None) if before else found
            if key in self.captions:
                self.text_last.add(key)
            if found.problem:
                self.shard.report(name, found.problem)
        elif extension == "json":
            file.seek(member.offset_data)
            row = _row(file, member, self.shard)
            self.captions.setdefault(key, {}).update(dict.fromkeys(clean(field_captions(row, self.columns) or ())))
            if type(row.get("class")) is int and abs(row["class"]) < 2**63:
                self.kinds[key] = row["class"]
        elif key in self.images:
            taken = printable(self.images[key].name)
            self.shard.report(name, f"its sample has the image {taken} already, which is taken")
        else:
            self.images[key] = TarSample(name, member.offset_data, member.size, (), None)
        self.seen.add(name)

    def _key(self, name: str) -> tuple[str, str]:
        """The key of a member and its extension in lower case, without the dot; an empty one where it is not read."""
        folder, base = posixpath.split(composed(name))
        stem, _, extension = base.partition(".")
        if stem and _is_read(extension):
            return posixpath.join(folder, stem), extension.lower()
        first, (stem, _, extension) = stem, base.rpartition(".")
        if not first or not _is_read(extension):
            return "", ""
        key = posixpath.join(folder, stem)
        self.first_dot[key] = posixpath.join(folder, first)
        return key, extension.lower()

    def finish(self) -> Shard:
        """The samples, in the order of their images; a problem for each image or caption that has no other."""
        for key, image in self.images.items():
            own = list(self.captions.get(key, ()))
            if text := self.texts.get(key):
                parts = [text.beside(own), own]
                own = list(dict.fromkeys(itertools.chain(*(reversed(parts) if key in self.text_last else parts))))
            if own:
                sample = image._replace(name=printable(image.name), captions=tuple(own), kind=self.kinds.get(key))
                self.shard.samples.append(sample)
            elif self.first_dot.get(key) not in self.images:
                self.shard.report(image.name, NO_CAPTION)
        for key in dict.fromkeys([*self.texts, *self.captions]):
            if key not in self.images and self.first_dot.get(key) not in self.images:
                self.shard.report(key, "captions without an image")
        return self.shard


def _is_read(extension: str) -> bool:
    return f".{extension.lower()}" in (*IMAGE_EXTENSIONS, ".txt", ".json")


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
