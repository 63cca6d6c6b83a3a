"""The list of shards that are packed together, with what is needed to find out whether they are still whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastt2i.data.captions import parse_json
from fastt2i.data.dataset import Problem
from fastt2i.errors import UserError

NAME = "manifest.json"
_FORMAT = 1
_BLOCK = 2**20  # bytes


class Entry(NamedTuple):
    """A shard."""

    name: str
    samples: int
    bytes: int
    sha256: str


def manifest(entries: Sequence[Entry], image_size: int | None, left_out: Sequence[Problem]) -> bytes:
    """The content of a manifest. image_size: pixels, where images were resized. left_out: what could not be packed."""
    content = {
        "format": _FORMAT,
        "samples": sum(entry.samples for entry in entries),
        "image_size": image_size,
        "shards": [entry._asdict() for entry in entries],
        "left_out": [{"where": problem.where, "what": problem.what} for problem in left_out],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_manifest(folder: Path) -> list[Entry]:
    """The shards that the manifest of a folder lists; none where there is no manifest. Raises UserError: it is none."""
    path = folder / NAME
    if not path.is_file():
        return []
    try:
        return [entry_of(row) for row in parse_json(path.read_bytes())["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of shards as `pack` writes it ({type(error).__name__}: {error})") from error


def entry_of(row: dict[str, object]) -> Entry:
    """An entry from what a JSON file holds of it. Raises ValueError, KeyError, TypeError: it is none."""
    name, sha256 = row["name"], row["sha256"]
    samples, size = row["samples"], row["bytes"]
    if not isinstance(name, str) or "/" in name or not isinstance(sha256, str):
        raise ValueError("a shard without a name or a digest")
    if not isinstance(samples, int) or not isinstance(size, int):
        raise ValueError("a shard without its size")
    return Entry(name, samples, size, sha256)


def difference(path: Path, entry: Entry) -> str | None:
    """How a shard differs from its entry; None where it does not. Raises OSError."""
    size = path.stat().st_size
    if size != entry.bytes:
        return f"it has {size} bytes where {NAME} says {entry.bytes}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return None if digest.hexdigest() == entry.sha256 else f"its SHA-256 is not the one in {NAME}"
