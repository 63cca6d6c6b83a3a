"""Text features of all captions of a run, computed once and kept on disk.

A cache is a folder of NumPy arrays, memory-mapped when read: a step touches only the rows of its batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fastt2i.durable import new_directory, sync_file
from fastt2i.text_features import TextFeatures

FORMAT = 1
#: Captions encoded between two movements of the progress bar.
CHUNK = 512
DTYPES: Mapping[str, Any] = {"sentence": np.float16, "keywords": np.float16, "mask": np.bool_}


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
        arrays: sentence (N, d) and keywords (N, T, d) float16, mask (N, T) bool.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        # Keywords come first in a row: columns that no caption fills would only cost time in every step.
        used = arrays["mask"].any(axis=0)
        width = max(1, int(used.sum()))
        self._arrays = {"sentence": arrays["sentence"]} | {
            name: arrays[name][:, :width] for name in ("keywords", "mask")
        }

    def __len__(self) -> int:
        return len(self._arrays["mask"])

    def rows(self, ids: Tensor) -> TextFeatures:
        """Features of the captions with these ids (B,), float32 on the CPU; T is the most keywords of any caption."""
        places = ids.numpy()
        sentence, keywords = (torch.from_numpy(self._arrays[name][places]).float() for name in ("sentence", "keywords"))
        return TextFeatures(sentence, keywords, torch.from_numpy(self._arrays["mask"][places]))

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
        path = (directory or default_directory()) / cache_key(encoder, captions)
        shapes = _shapes(encoder, len(captions))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # of several processes one computes, and the others wait
                if not _is_whole(path, shapes):
                    _build(path, shapes, encoder, captions, progress)
                return cls(_map(path))
        except OSError as error:
            warnings.warn(f"text features cannot be kept in {path.parent} ({error}); they stay in memory", stacklevel=2)
        arrays = {name: np.zeros(shape, DTYPES[name]) for name, shape in shapes.items()}
        _fill(arrays, encoder, captions, progress)
        return cls(arrays)


def default_directory() -> Path:
    """`fastt2i/text` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastt2i" / "text"


def cache_key(encoder: Encoder, captions: Sequence[str]) -> str:
    """A name that changes with everything that decides the features."""
    settings = [FORMAT, encoder.digest, encoder.max_keywords, sorted(encoder.stop_words), sorted(encoder.idf.items())]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for caption in captions:
        digest.update(caption.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def _shapes(encoder: Encoder, count: int) -> dict[str, tuple[int, ...]]:
    keywords, dim = encoder.max_keywords, encoder.sentence_dim
    return {"sentence": (count, dim), "keywords": (count, keywords, dim), "mask": (count, keywords)}


def _map(path: Path) -> dict[str, NDArray[Any]]:
    return {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in DTYPES}


def _is_whole(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a cache is there with every byte that it should have; a damaged one is removed."""
    if not path.is_dir():
        return False
    try:
        arrays = _map(path)
        if all(arrays[name].shape == shape and arrays[name].dtype == DTYPES[name] for name, shape in shapes.items()):
            return True
    except (OSError, ValueError):
        pass
    shutil.rmtree(path)
    return False


def _build(
    path: Path, shapes: Mapping[str, tuple[int, ...]], encoder: Encoder, captions: Sequence[str], progress: bool
) -> None:
    with new_directory(path) as temporary:
        files = {name: temporary / f"{name}.npy" for name in shapes}
        arrays: dict[str, NDArray[Any]] = {
            name: np.lib.format.open_memmap(files[name], "w+", dtype=DTYPES[name], shape=shape)
            for name, shape in shapes.items()
        }
        _fill(arrays, encoder, captions, progress)
        arrays.clear()  # closes the maps, so that the files have all that was written
        for file in files.values():
            sync_file(file)


def _fill(arrays: Mapping[str, NDArray[Any]], encoder: Encoder, captions: Sequence[str], progress: bool) -> None:
    with tqdm(total=len(captions), desc="text features", unit="caption", file=sys.stderr, disable=not progress) as bar:
        for start in range(0, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            for name, values in encoder(chunk)._asdict().items():
                arrays[name][start : start + len(chunk)] = values.cpu().numpy()
            bar.update(len(chunk))
