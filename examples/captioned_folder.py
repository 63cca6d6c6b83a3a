"""Writes pictures with captions as a folder that `--data` takes, with a held-out part of known words.

OUT/train/metadata.jsonl  OUT/train/*.png
OUT/test/metadata.jsonl   OUT/test/*.png
OUT/LICENSE
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastt2i.errors import UserError


@dataclass(frozen=True)
class Picture:
    """An image file's content and what is said of it; the name is that of its file."""

    name: str
    captions: tuple[str, ...]
    content: bytes

    @property
    def words(self) -> frozenset[str]:
        return frozenset(word for caption in self.captions for word in re.findall(r"\w+", caption.lower()))


def hold_out(pictures: Sequence[Picture], share: float) -> set[str]:
    """Choose pictures to hold out, each word of which stays among the others -> their names.

    So only combinations of words are new, and no caption is one of those trained on. Who is asked first depends on
    names alone. Fewer than `share` are held out where no more can be.
    """
    seen = Counter(word for picture in pictures for word in picture.words)
    told = Counter(caption for picture in pictures for caption in set(picture.captions))
    chosen: set[str] = set()
    for picture in sorted(pictures, key=lambda picture: hashlib.sha256(picture.name.encode()).digest()):
        if len(chosen) >= share * len(pictures):
            break
        if all(seen[word] > 1 for word in picture.words) and all(told[caption] == 1 for caption in picture.captions):
            chosen.add(picture.name)
            seen.subtract(picture.words)
    return chosen


def must_be_new(out: Path) -> None:
    """Raise UserError where a folder that is to be made is there already."""
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or choose another --out")


def write(out: Path, pictures: Sequence[Picture], *, share: float, licence: str) -> dict[str, int]:
    """Write the folder, whole or not at all -> the number of pictures in each part.

    share: of pictures to hold out, at most; licence: what LICENSE says.
    Raises UserError where `out` is there already.
    """
    must_be_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = hold_out(pictures, share)
    parts = {
        "train": [picture for picture in pictures if picture.name not in chosen],
        "test": [picture for picture in pictures if picture.name in chosen],
    }
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as partial:
        folder = Path(partial) / out.name
        for part, members in parts.items():
            (folder / part).mkdir(parents=True)
            for picture in members:
                (folder / part / picture.name).write_bytes(picture.content)
            rows = ({"file_name": picture.name, "text": list(picture.captions)} for picture in members)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / part / "metadata.jsonl").write_text(lines, encoding="utf-8")
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
        folder.rename(out)
    return {part: len(members) for part, members in parts.items()}


@contextmanager
def downloaded(command: Sequence[str], pattern: str) -> Iterator[Path]:
    """The file that a package manager downloads, as long as the block lasts.

    command: with what to download into the working folder; pattern: of the file's name.
    Raises UserError: the package manager is not there, or it fails.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed; fetch {pattern} yourself, and name it with --package")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        files = sorted(Path(folder).glob(pattern))
        if done.returncode or not files:
            reason = (done.stderr.strip().splitlines() or ["it downloaded nothing"])[-1]
            raise UserError(f"`{' '.join(command)}` failed: {reason}; with --package a file of yours is read")
        yield files[0]


def build(out: Path, pictures: Sequence[Picture], *, share: float, licence: str) -> None:
    """`write`, and say what there is and how to train on it."""
    counts = write(out, pictures, share=share, licence=licence)
    print(f"{out}: {counts['train']:,} pictures to train on, {counts['test']:,} held out")
    print(f"next: python -m fastt2i.train --data {out} --preset 64px --out runs/{out.name}")
