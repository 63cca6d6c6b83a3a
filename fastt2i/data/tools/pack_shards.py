"""Writes any dataset out as WebDataset shards that `tar_dataset` reads, and plain tar.

- A sample is `000000012.jpg` (or `.png`, `.webp`, `.bmp`), `000000012.txt` with a caption a line, and `000000012.json`
  with these in `text`, its name in the set that it comes from in `key`, and its class in `class` if it has one. The
  number is the key: names with dots or slashes mean something else in a tar than in a folder.
- Where samples are held out, their shards are called `test-00000.tar` and the others `train-00000.tar`, so that the
  split stays the same; else `00000.tar`.
- `manifest.json` has the SHA-256 of each shard, and what was left out.
Nothing in a shard depends on when or by whom it is written. A pack that was killed goes on after its last whole shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastt2i.data.captions import parse_json
from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.tools.manifest import NAME, Entry, difference, entry_of, manifest
from fastt2i.data.tools.pack import LOCK, Content, extensions, new_folder, refuse_nothing
from fastt2i.files.atomic import replace_file, sync_file, write_file
from fastt2i.files.atomic import sha256 as sha256_of
from fastt2i.files.sealed import sealed, unsealed

_FORMAT = 1
_PROGRESS = "progress.json"


@dataclass
class _Progress:
    """What an interrupted pack has done: `next` samples are in whole shards, or problems."""

    settings: str
    shards: list[Entry] = field(default_factory=list)
    next: int = 0
    problems: list[Problem] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        content = {
            "settings": self.settings,
            "shards": [entry._asdict() for entry in self.shards],
            "next": self.next,
            "problems": [(problem.where, problem.what) for problem in self.problems],
        }
        replace_file(folder / _PROGRESS, sealed(json.dumps(content).encode()))

    @classmethod
    def resume(cls, folder: Path, settings: str) -> _Progress:
        """What the folder has, if it was begun with the same settings; what is not part of it is removed."""
        found = cls(settings)
        try:
            content = parse_json(unsealed((folder / _PROGRESS).read_bytes()))
            shards = [entry_of(row) for row in content["shards"]]
            if content["settings"] == settings and not any(difference(folder / s.name, s) for s in shards):
                problems = [Problem(str(where), str(what)) for where, what in content["problems"]]
                found = cls(settings, shards, int(content["next"]), problems)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is new, or was left by something else
        keep = {LOCK, *(shard.name for shard in found.shards)}
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()
        if found.shards:
            found.save(folder)
        return found


class _Shard:
    """A tar that takes its name when it is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.samples = self.bytes = 0
        self._path, self._temporary = folder / name, folder / f".{name}.tmp"
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()

    def add(self, members: bytes) -> None:
        self._write(members)
        self.samples += 1

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.bytes += len(content)

    def finish(self) -> Entry:
        self._write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar
        self.close()
        sync_file(self._temporary)
        self._temporary.rename(self._path)
        sync_file(self._path.parent)
        return Entry(self.name, self.samples, self.bytes, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


def pack_shards(
    dataset: Dataset,
    out: Path,
    *,
    shard_samples: int,
    shard_mb: int,
    image_size: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> list[Problem]:
    """Write the samples to tars in the folder `out`, which then is whole or not there at all.

    shard_samples, shard_mb: a shard has at most so many samples and MiB, but at least one sample. image_size: decode,
    cut square and resize to PNG, in `workers` processes; by default the files are copied as they are.
    Returns the samples that could not be read or decoded, which are left out. Raises UserError: as `new_folder`, no
    sample is left, or the images are cut to boxes, which copies would not be.
    """
    contents = Content.of(dataset, image_size)
    heldout = np.zeros(len(dataset), dtype=np.bool_) if dataset.heldout is None else dataset.heldout
    split = heldout.any() and not heldout.all()
    order = np.argsort(heldout, kind="stable").tolist()  # those that are trained on come first
    settings = _settings(dataset, image_size, shard_samples, shard_mb)
    with new_folder(out, keep=True) as folder:
        done = _Progress.resume(folder, settings)
        number = sum(entry.samples for entry in done.shards)
        shard: _Shard | None = None
        results = contents.each(order[done.next :], workers)
        bar = tqdm(total=len(dataset), initial=done.next, desc="packing", unit="img", disable=not progress)
        try:
            for place, content in enumerate(results, done.next):
                sample = order[place]
                bar.update()
                if isinstance(content, str) or not extensions(content):
                    reason = content if isinstance(content, str) else "not a JPEG, PNG, WebP or BMP image"
                    done.problems.append(Problem(dataset.keys[sample], reason))
                    continue
                members = _members(dataset, sample, number, content)
                side = ("test-" if heldout[sample] else "train-") if split else ""
                if shard and (
                    shard.samples == shard_samples
                    or shard.bytes + len(members) > shard_mb * 2**20
                    or not shard.name.startswith(side)
                ):
                    _finish(shard, done, place, folder)
                    shard = None
                if shard is None:
                    before = sum(entry.name.startswith(side) for entry in done.shards)
                    shard = _Shard(folder, f"{side}{before:05d}.tar")
                shard.add(members)
                number += 1
            if shard:
                _finish(shard, done, len(order), folder)
        finally:
            bar.close()
            if shard:
                shard.close()
        refuse_nothing(dataset, done.problems)
        write_file(folder / NAME, manifest(done.shards, image_size, done.problems))
        (folder / _PROGRESS).unlink(missing_ok=True)
    return done.problems


def _finish(shard: _Shard, done: _Progress, place: int, folder: Path) -> None:
    done.shards.append(shard.finish())
    done.next = place
    done.save(folder)


def _members(dataset: Dataset, sample: int, number: int, content: bytes) -> bytes:
    """The members of a tar that a sample is."""
    captions = dataset.captions[sample]
    told: dict[str, object] = {"key": dataset.keys[sample], "text": list(captions)}
    if dataset.classes is not None:
        told["class"] = int(dataset.classes[sample])
    files = {
        extensions(content)[0]: content,
        ".json": json.dumps(told, ensure_ascii=False).encode(),
        ".txt": "".join(f"{caption}\n" for caption in captions).encode(),
    }
    return b"".join(_member(f"{number:09d}{extension}", own) for extension, own in files.items())


def _member(name: str, content: bytes) -> bytes:
    """A file as a tar has it, of nobody and from the beginning of time."""
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(content), 0o644, 0
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + padding


def _settings(dataset: Dataset, image_size: int | None, shard_samples: int, shard_mb: int) -> str:
    """A digest of all that decides what is written."""
    encoder = None if image_size is None else Image.__version__
    digest = [sha256_of(json.dumps([_FORMAT, image_size, encoder, shard_samples, shard_mb]).encode())]
    for sample, (key, captions) in enumerate(dataset):
        try:
            stamp = dataset.stamp(sample) if dataset.stamp else ""
        except OSError:
            stamp = "cannot be read"
        kind = None if dataset.classes is None else int(dataset.classes[sample])
        crop = None if dataset.crops is None else dataset.crops[sample].tolist()
        side = None if dataset.heldout is None else bool(dataset.heldout[sample])
        digest.append(sha256_of(json.dumps([key, captions, stamp, kind, crop, side]).encode()))
    return sha256_of("".join(digest).encode())
