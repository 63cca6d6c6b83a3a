"""Folders of images and captions, filled and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.folder import folder_dataset

Picture = Callable[..., bytes]


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(folder: Path) -> Dataset:
    return folder_dataset(folder, "all")


def samples(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return dict(list(dataset))


def problems(dataset: Dataset) -> list[tuple[str, str]]:
    return [(problem.where, problem.what) for problem in dataset.problems]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
