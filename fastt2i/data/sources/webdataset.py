"""WebDataset shards, as img2dataset writes them: tars in which an image and its captions have the same key.

- `000012.jpg` has the captions of `000012.txt`, one a line, and of `000012.json`, in `text`, `caption`, `captions` or
  `prompt`, or the field that the setting names; then the `.txt` does not count, unless it is named: `txt`.
- `class` in the .json, a whole number, is the image's class, if every image has one.
- The key is the name up to the first dot of its last part, and means nothing; `tar_index.read_shard` has the details.
- Shards are named as `helpers.shards` says. `train` and `test` or `val` in their names are the split.
- Two shards may use the same keys for different images. An image that agrees with one of an earlier shard in name, size
  and captions is that one once more, and left out.
Images are read at random access, by an index that is made once (see `fastt2i.data.sources.helpers.tar_index`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from fastt2i.data.captions import text_columns
from fastt2i.data.dataset import Dataset, Problem, Split
from fastt2i.data.sources.helpers.shards import Shards, find_shards, names_shards
from fastt2i.data.sources.helpers.tar_index import Shard, load_shard, make_shard
from fastt2i.data.split import heldout_by_share, heldout_by_word, split_word
from fastt2i.errors import UserError
from fastt2i.files.io_errors import classify_io_errors
from fastt2i.files.reading import file_stamp
from fastt2i.files.user_cache import user_cache

LAYOUT = "*.tar with an image, and a .txt or .json of captions, of the same key"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def detect(path: str) -> bool:
    """Whether `path` names tars, or a folder that has some. Compressed ones count: reading them says what to do."""
    return names_shards(path, (".tar", *_COMPRESSED))


def tar_dataset(path: str, split: Split = "train", heldout: float = 0.05, text_column: str = "") -> Dataset:
    """Find the captioned images of tars, in the order of the shards and of their members.

    heldout: the share that is held out where the names of the shards tell no split. text_column: the field of the
    .json that has the captions.
    Raises UserError: there is no such shard, one is compressed, or none has an image with a caption.
    """
    shards = find_shards(path, (".tar", *_COMPRESSED))
    columns = (text_column,) if text_column else ("txt", *text_columns(""))
    problems = shards.problems
    keys, captions, words, ranges, kinds, stamps = [], [], [], [], [], []
    split_keys: list[str] = []  # the same whatever other shards are read
    first: dict[tuple[str, int, tuple[str, ...]], str] = {}
    for number, (name, shard) in enumerate(_open_all(shards, columns)):
        stamps.append(shard.stamp)
        problems += (Problem(f"{name}/{p.where}" if p.where else name, p.what) for p in shard.problems)
        for sample in shard.samples:
            before = first.setdefault((sample.name, sample.size, sample.captions), name)
            if before != name:
                what = f"of the same name, size and captions as the one in {before}, which is taken"
                problems.append(Problem(f"{name}/{sample.name}", what))
                continue
            keys.append(f"{name}/{sample.name}")
            split_keys.append(f"{shards.file_names[number]}/{sample.name}")
            captions.append(sample.captions)
            words.append(split_word(name))
            ranges.append((number, sample.offset, sample.size))
            kinds.append(sample.kind)
    if not keys:
        told = f" ({problems[0].where}: {problems[0].what})" if problems else ""
        raise UserError(f"there is no image with a caption in {path}{told}; wanted is {LAYOUT}")
    by_word = heldout_by_word(words)
    reader = _RangeReader(tuple(shards.paths), tuple(stamps), np.array(ranges, dtype=np.int64))
    return Dataset(
        name=path,
        keys=keys,
        captions=captions,
        read=reader,
        stamp=reader.stamp,
        shards=shards.paths,
        problems=problems,
        classes=None if None in kinds else np.array(kinds, dtype=np.int64),
        heldout=heldout_by_share(split_keys, heldout) if by_word is None else by_word,
    ).split(split)


@dataclass(frozen=True)
class _RangeReader:
    """Reads ranges of files."""

    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    """Of the files when their indices were made."""
    ranges: NDArray[np.int64]
    """int64 (N, 3): file, offset and size of each sample."""

    def __call__(self, sample: int) -> bytes:
        number, offset, size = self.ranges[sample].tolist()
        path = self.paths[number]
        with classify_io_errors(path), open(path, "rb") as file:
            if file_stamp(file.fileno()) != self.stamps[number]:
                raise OSError("the shard has changed since its index was made")
            file.seek(offset)
            return file.read(size)

    def stamp(self, sample: int) -> str:
        path, offset, size = self.ranges[sample].tolist()
        return f"{file_stamp(self.paths[path])} {offset} {size}"


def _open_all(shards: Shards, columns: tuple[str, ...]) -> Iterator[tuple[str, Shard]]:
    """The name and content of each shard; one that cannot be read is empty but for its problem."""
    found = [_try(load_shard, path, columns) for path in shards.paths]
    if not all(found):
        with _alone(shards.paths), tqdm(total=found.count(None), desc="indexing shards", unit="shard", delay=1) as bar:
            for place, path in enumerate(shards.paths):
                if found[place] is None:  # or made by another process while this one waited
                    found[place] = _try(load_shard, path, columns) or _try(make_shard, path, columns)
                    bar.update()
    return ((name, shard or Shard()) for name, shard in zip(shards.names, found, strict=True))


def _try(how: Callable[[str, tuple[str, ...]], Shard | None], path: str, columns: tuple[str, ...]) -> Shard | None:
    try:
        with classify_io_errors(path):
            return how(path, columns)
    except OSError as error:
        return Shard(problems=[Problem("", f"cannot be read: {error.strerror or error}")])


@contextlib.contextmanager
def _alone(paths: list[str]) -> Iterator[None]:
    """Of several processes one makes the indices, and the others wait; without locks, each makes them."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            directory = user_cache("shards")
            directory.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(b"\0".join(os.fsencode(path) for path in paths)).hexdigest()[:32]
            stack.enter_context(FileLock(directory / f"{digest}.lock"))
        yield
