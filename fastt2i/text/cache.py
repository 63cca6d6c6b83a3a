"""Text features of all captions of a run, computed once and kept on disk.

A cache is a folder of NumPy arrays, memory-mapped when read: a step touches only the rows of its batch. While it is
made its files grow chunk by chunk in a hidden folder, which takes the cache's name when they are whole; what an
interrupted process left there is gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fastt2i.errors import UserError
from fastt2i.files.atomic import move_directory, sync_file
from fastt2i.files.user_cache import user_cache
from fastt2i.text.features import TextFeatures

FORMAT = 3
#: Captions encoded at once. The last bits of features depend on the batch, so an interrupted cache goes on at a chunk.
CHUNK = 512
DTYPES: Mapping[str, Any] = {"sentence": np.float16, "keywords": np.float16, "mask": np.bool_, "digest": np.uint32}


class Encoder(Protocol):
    """What makes the features, and all that decides them."""

    digest: str
    sentence_dim: int
    max_keywords: int
    stop_words: frozenset[str]
    idf: Mapping[str, float]

    def __call__(self, captions: Sequence[str]) -> TextFeatures: ...


class TextCache:
    """Features of N captions, a row each.

    Args:
        arrays: sentence (N, d) and keywords (N, T, d) float16, mask (N, T) bool; and, for rows that are checked when
            they are read, digest (N, 2) uint32, the CRC-32 of each row's sentence, and of its keywords and mask.
        path: where they are, for the error that one is damaged.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], path: Path | None = None) -> None:
        # Keywords come first in a row: columns that no caption fills would only cost time in every step.
        used = arrays["mask"].any(axis=0).nonzero()[0]
        self._width = int(used.max(initial=0)) + 1
        self._arrays, self._path = arrays, path

    def __len__(self) -> int:
        return len(self._arrays["mask"])

    def rows(self, ids: Tensor) -> TextFeatures:
        """Features of the captions with these ids (B,), float32 on the CPU; T is the most keywords of any caption.

        Raises:
            UserError: the disk gives other rows than were written.
        """
        places = ids.numpy()
        keywords, mask = (self._arrays[name][places] for name in ("keywords", "mask"))
        self._check(places, 1, keywords, mask)
        keywords, mask = (np.ascontiguousarray(values[:, : self._width]) for values in (keywords, mask))
        return TextFeatures(self.sentences(ids), torch.from_numpy(keywords).float(), torch.from_numpy(mask))

    def sentences(self, ids: Tensor) -> Tensor:
        """Sentence features (B, d) alone of the captions with these ids (B,), float32 on the CPU.

        Raises:
            UserError: the disk gives other rows than were written.
        """
        places = ids.numpy()
        sentences = self._arrays["sentence"][places]
        self._check(places, 0, sentences)
        return torch.from_numpy(sentences).float()

    def _check(self, places: NDArray[np.int64], column: int, *rows: NDArray[Any]) -> None:
        if "digest" not in self._arrays:
            return
        damaged = np.flatnonzero(_digests(*rows) != self._arrays["digest"][places, column])
        if len(damaged):
            raise UserError(
                f"the text features in {self._path} are damaged (row {places[damaged[0]]}): remove that folder, and "
                "they are computed anew"
            )

    @classmethod
    def open(
        cls, encoder: Encoder, captions: Sequence[str], directory: Path | None = None, *, progress: bool = True
    ) -> TextCache:
        """The features of these captions: read if they are on disk, computed and kept otherwise.

        A folder that cannot be written is told of in a warning; the features then stay in memory.

        Args:
            encoder: makes the features.
            captions: all captions; row i is caption i's.
            directory: where caches are kept; the user's cache directory by default.
            progress: show a bar on the terminal.
        """
        path = (directory or user_cache("text")) / cache_key(encoder, captions)
        shapes = _shapes(encoder, len(captions))
        arrays = _read(path, shapes)
        if arrays:
            return cls(arrays, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # of several processes one computes, and the others wait
                return cls(_read(path, shapes) or _build(path, shapes, encoder, captions, progress), path)
        except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
            warnings.warn(f"text features cannot be kept in {path.parent} ({error}); they stay in memory", stacklevel=2)
        arrays = {name: np.zeros(shape, DTYPES[name]) for name, shape in shapes.items()}
        for start, rows in _encode(encoder, captions, 0, progress):
            for name, values in rows.items():
                arrays[name][start : start + len(values)] = values
        return cls(arrays)


def cache_key(encoder: Encoder, captions: Sequence[str]) -> str:
    """A name that changes with everything that decides the features."""
    settings = [FORMAT, encoder.digest, encoder.max_keywords, sorted(encoder.stop_words), sorted(encoder.idf.items())]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for caption in captions:
        text = caption.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(text), text))
    return digest.hexdigest()[:32]


def _shapes(encoder: Encoder, count: int) -> dict[str, tuple[int, ...]]:
    keywords, dim = encoder.max_keywords, encoder.sentence_dim
    return {
        "sentence": (count, dim),
        "keywords": (count, keywords, dim),
        "mask": (count, keywords),
        "digest": (count, 2),
    }


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]] | None:
    """The arrays of a cache, if it is there with every byte that it should have."""
    try:
        whole = all(_is_whole(path / f"{name}.npy", name, shape) for name, shape in shapes.items())
        return {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in shapes} if whole else None
    except OSError:
        return None


def _is_whole(path: Path, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a file has the size and the first bytes that it should have. Raises OSError."""
    header = _header(name, shape)
    with path.open("rb") as file:
        begins = file.read(len(header)) == header
    return begins and path.stat().st_size == len(header) + math.prod(shape) * np.dtype(DTYPES[name]).itemsize


def _build(
    path: Path, shapes: Mapping[str, tuple[int, ...]], encoder: Encoder, captions: Sequence[str], progress: bool
) -> dict[str, NDArray[Any]]:
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((partial / f"{name}.npy").open("ab+")) for name in shapes}
            done = _resume(files, shapes)
            # Written, not mapped: on a full disk a write fails, and a map ends the process with SIGBUS.
            for _, rows in _encode(encoder, captions, done, progress):
                for name, values in rows.items():
                    files[name].write(values.tobytes())
                    files[name].flush()
                    os.fsync(files[name].fileno())
        sync_file(partial)
        if path.exists():  # and damaged
            shutil.rmtree(path)
        move_directory(partial, path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk has better uses than half a cache
        raise
    sync_file(path.parent)
    arrays = _read(path, shapes)
    if not arrays:
        raise OSError(f"{path} does not read as it was written")
    return arrays


def _resume(files: Mapping[str, BinaryIO], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bring the files of an interrupted cache, or new ones, to the same number of rows: how many there are."""
    headers = {name: _header(name, shape) for name, shape in shapes.items()}
    row_bytes = {name: math.prod(shape[1:]) * np.dtype(DTYPES[name]).itemsize for name, shape in shapes.items()}
    complete = []
    for name, file in files.items():
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        begun = file.read(len(headers[name])) == headers[name]
        complete.append((size - len(headers[name])) // row_bytes[name] // CHUNK if begun else 0)
    # The last chunk may be longer than what the disk has of it, if the machine went down: it is made again.
    rows = max(0, min(complete) - 1) * CHUNK
    for name, file in files.items():
        if rows:
            file.truncate(len(headers[name]) + rows * row_bytes[name])
        else:
            file.truncate(0)
            file.write(headers[name])
    return rows


def _header(name: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a `.npy` file."""
    header = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(DTYPES[name])),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _encode(
    encoder: Encoder, captions: Sequence[str], first: int, progress: bool
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Rows of all arrays from the first one on, chunk by chunk, each with the number of its first row."""
    bar = tqdm(
        total=len(captions),
        initial=first,
        desc="text features",
        unit="caption",
        file=sys.stderr,
        disable=not progress,
    )
    with bar:
        for start in range(first, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            features = encoder(chunk)._asdict()
            rows = {name: values.cpu().numpy().astype(DTYPES[name]) for name, values in features.items()}
            columns = [_digests(rows["sentence"]), _digests(rows["keywords"], rows["mask"])]
            yield start, rows | {"digest": np.stack(columns, axis=1)}
            bar.update(len(chunk))


def _digests(*arrays: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of each row of arrays (n, ...), taken together -> (n,). It finds every run of up to 32 changed bits."""
    digests = []
    for rows in zip(*map(np.ascontiguousarray, arrays), strict=True):
        digest = 0
        for row in rows:
            digest = zlib.crc32(row, digest)
        digests.append(digest)
    return np.array(digests, dtype=np.uint32)
