"""Which samples training never sees."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_HELDOUT_WORDS = ("test", "val", "valid", "validation", "dev")
# A word of its own: `train-00000-of-00002.parquet` and `test/0.tar` have one, `latest.tar` and `trains.tar` have none.
_WORD = re.compile(rf"(?:^|[/._-])(train|{'|'.join(_HELDOUT_WORDS)})(?=[/._-])", re.IGNORECASE)


def heldout_by_share(keys: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Hold out a share of the samples -> bool (N,).

    keys: names of the samples that do not change when others join: a shard's file name, without its folder, and the
    name in it. Which samples are held out depends on these alone. None are where all would be.
    """
    # The first 8 bytes of the digest are a uniform number; below the share, the sample is held out.
    draws = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 for key in keys]
    heldout = np.array(draws, dtype=np.float64) < share
    return heldout & ~heldout.all()


def heldout_by_word(words: Iterable[str]) -> NDArray[np.bool_] | None:
    """Hold out the samples whose word is `test`, `validation` or alike -> bool (N,).

    The others are trained on. None unless there are both such words and `train`.
    """
    found = [word.lower() for word in words]
    if "train" not in found or not set(found) & set(_HELDOUT_WORDS):
        return None
    return np.array([word in _HELDOUT_WORDS for word in found])


def split_word(name: str) -> str:
    """The first word in a file's path that names a split; empty where none does."""
    match = _WORD.search(name)
    return match[1] if match else ""
