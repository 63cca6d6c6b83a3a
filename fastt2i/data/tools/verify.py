"""Decodes every image of a dataset once, and writes down what is wrong.

What was found is kept in a journal in the user's cache directory: a check that was killed goes on from there, and a
later one decodes only what has changed since, by the size and time of its file and its place in it. The report is the
same however often it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import MAX_PIXELS, BadImage, Decoder
from fastt2i.data.tools.manifest import NAME, Entry, difference, read_manifest
from fastt2i.data.tools.parallel import each
from fastt2i.data.verify_report import Finding
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file, sha256
from fastt2i.files.io_errors import classify_io_errors
from fastt2i.files.reading import file_stamp
from fastt2i.files.user_cache import user_cache

_FORMAT = 2
_BATCH = 32  # results that go to the journal at a time
_SIZE = 8  # pixels: an image is cut, turned and resized as for training, and then not needed


class _Result(NamedTuple):
    """What is wrong with something, if anything is."""

    what: str | None
    lasting: bool = True
    """Whether it stays so until the file is written anew; what cannot be read may be readable tomorrow."""


_LOST = _Result("decoding it ends the process that tries", lasting=False)


def verify(dataset: Dataset, *, workers: int, afresh: bool = False, progress: bool = True) -> list[Finding]:
    """Decode every image, and compare packed shards with their digests.

    workers: processes. afresh: decode also what was decoded before.
    Raises UserError: another process is at it, the journal cannot be kept, or the machine fails to read a file, which
    says nothing of it.
    """
    path = user_cache("verify") / f"{_name(dataset)}.journal"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=0):
            journal = _Journal(path, afresh)
            shards = list(_shards(dataset, journal, workers, progress))
            with tqdm(total=len(dataset), desc="verifying", unit="img", disable=not progress) as bar:
                images = list(_images(dataset, journal, workers, bar))
            journal.tidy()
    except Timeout as error:
        raise UserError(f"another process is verifying {dataset.name}") from error
    except OSError as error:
        raise UserError(f"the journal {path} cannot be kept: {error.strerror or error}") from error
    left_out = [Finding("source", problem.where, problem.what) for problem in dataset.problems]
    return [*left_out, *shards, *images]


class _Journal:
    """What is known of files, by a digest of what they are and when they changed: None, or what is wrong.

    Each line ends with its SHA-256. Lines that are damaged, or that a killed process has cut short, are dropped, with
    all after them.
    """

    def __init__(self, path: Path, afresh: bool) -> None:
        self._path = path
        self._known: dict[str, str | None] = {}
        self._used: dict[str, str | None] = {}
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() and not afresh else []
        if lines[:1] != [_header()]:
            lines = []
            replace_file(path, _header())
        whole = len(_header())
        for line in lines[1:]:
            try:
                if not line.endswith(b"\n"):
                    break
                content, _, digest = line[:-1].rpartition(b"\t")
                if sha256(content).encode() != digest:
                    break
                own = json.loads(content)
                self._known |= dict.fromkeys(own["good"]) | own["bad"]
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line)
        os.truncate(path, whole)

    def check(
        self, names: Sequence[str | None], check: Callable[[list[int]], Iterator[_Result]]
    ) -> Iterator[str | None]:
        """What is wrong with each of some things, None where nothing is.

        names: a digest of each, None for one that is to be checked in any case. check: what is wrong with those at
        some places.
        """
        asked = [place for place, name in enumerate(names) if name is None or name not in self._known]
        results = zip(asked, check(asked), strict=True)
        place = 0
        while batch := dict(islice(results, _BATCH)):
            new = {name: result.what for at, result in batch.items() if (name := names[at]) and result.lasting}
            with self._path.open("ab") as file:
                file.write(_line(new))
            self._known |= new
            end = max(batch) + 1
            yield from (self._recall(names[at], batch.get(at)) for at in range(place, end))
            place = end
        yield from (self._recall(name, None) for name in names[place:])

    def _recall(self, name: str | None, new: _Result | None) -> str | None:
        """What is wrong with a thing, noted as one that is still there."""
        if name is not None and name in self._known:
            self._used[name] = self._known[name]
            return self._known[name]
        assert new is not None
        return new.what

    def tidy(self) -> None:
        """Forget what has changed or gone since."""
        items = iter(self._used.items())
        lines = [_header()]
        while batch := dict(islice(items, _BATCH)):
            lines.append(_line(batch))
        replace_file(self._path, b"".join(lines))


def _header() -> bytes:
    """What a journal has to begin with to count: other code may find something else."""
    return json.dumps({"journal": _FORMAT, "pillow": Image.__version__, "max_pixels": MAX_PIXELS}).encode() + b"\n"


def _line(results: dict[str, str | None]) -> bytes:
    good = [name for name, what in results.items() if what is None]
    bad = {name: what for name, what in results.items() if what is not None}
    content = json.dumps({"good": good, "bad": bad}).encode()
    return content + f"\t{sha256(content)}\n".encode()


def _name(dataset: Dataset) -> str:
    paths = "::".join(os.path.abspath(part) for part in dataset.name.split("::"))
    return sha256(os.fsencode(paths))[:32]


def _images(dataset: Dataset, journal: _Journal, workers: int, bar: tqdm[NoReturn]) -> Iterator[Finding]:
    decode = _Decode(Decoder.of(dataset, _SIZE))
    names = [_image_name(dataset, sample) for sample in range(len(dataset))]
    results = journal.check(names, lambda samples: each(decode, samples, workers=workers, lost=_LOST))
    for key, what in zip(dataset.keys, results, strict=True):
        bar.update()
        if what is not None:
            yield Finding("image", key, what)


def _image_name(dataset: Dataset, sample: int) -> str | None:
    try:
        stamp = dataset.stamp(sample) if dataset.stamp else ""
    except OSError:
        return None
    crop = None if dataset.crops is None else dataset.crops[sample].tolist()
    return _digest("image", dataset.keys[sample], stamp, crop)


@dataclass(frozen=True)
class _Decode:
    decode: Decoder

    def __call__(self, sample: int) -> _Result:
        try:
            self.decode(sample)
        except BadImage as error:
            return _Result(str(error))
        except OSError as error:
            return _Result(f"cannot be read: {error.strerror or error}", lasting=False)
        return _Result(None)


def _shards(dataset: Dataset, journal: _Journal, workers: int, progress: bool) -> Iterator[Finding]:
    """What is wrong with packed shards, and which ones are gone."""
    folders = list(dict.fromkeys(os.path.dirname(path) for path in dataset.shards))
    listed = [(os.path.join(folder, e.name), e) for folder in folders for e in read_manifest(Path(folder))]
    wanted = set(dataset.shards)
    there = [(path, entry) for path, entry in listed if path in wanted and os.path.exists(path)]
    for path, _ in listed:
        if not os.path.exists(path):
            yield Finding("shard", path, f"it is in {NAME}, and not there")
    compare = _Compare(tuple(there))
    names = [_digest("shard", path, file_stamp(path), *entry) for path, entry in there]
    results = journal.check(names, lambda places: each(compare, places, workers=workers, lost=_LOST, chunk=1))
    bar = tqdm(results, total=len(there), desc="comparing shards", unit="shard", delay=1, disable=not progress)
    for (path, _), what in zip(there, bar, strict=True):
        if what is not None:
            yield Finding("shard", path, what)


@dataclass(frozen=True)
class _Compare:
    shards: tuple[tuple[str, Entry], ...]

    def __call__(self, place: int) -> _Result:
        path, entry = self.shards[place]
        try:
            with classify_io_errors(path):
                return _Result(difference(Path(path), entry))
        except OSError as error:
            return _Result(f"cannot be read: {error.strerror or error}", lasting=False)


def _digest(*what: object) -> str:
    return sha256(json.dumps(what).encode())[:32]
