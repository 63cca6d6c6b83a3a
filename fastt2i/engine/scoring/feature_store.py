"""Features of images on disk, a file for some images at a time: a killed evaluation goes on, processes share one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file
from fastt2i.files.sealed import sealed, unsealed

#: Images whose features are in one file. It decides the size of passes, which round otherwise at other sizes: so it is
#: the same for every number of processes.
CHUNK = 64


def key_of(facts: Mapping[str, object]) -> str:
    """A short digest of what decides features."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


class FeatureStore:
    """Features of the images of one source.

    Args:
        directory: of all sources.
        source: digest of what decides the images.
        count: of the images.
    """

    def __init__(self, directory: Path, source: str, count: int) -> None:
        self.directory = directory / source
        self._count = count

    @property
    def chunks(self) -> range:
        """Numbers of the files."""
        return range(-(-self._count // CHUNK))

    def numbers(self, chunk: int) -> range:
        """Images whose features a file has."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self._count))

    def has(self, reader: str, chunk: int) -> bool:
        """Whether the file is there and whole."""
        return self._read(reader, chunk) is not None

    def save(self, reader: str, chunk: int, features: Tensor) -> None:
        """Write the features (n, D) of a file's images."""
        path = self._path(reader, chunk)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, sealed(safetensors.torch.save({"features": features.float().contiguous()})))
        except OSError as error:
            raise UserError(f"cannot keep features in {path.parent}: {error.strerror or error}") from error

    def load(self, reader: str) -> Tensor:
        """All features float32 (N, D); rows are NaN where an image could not be decoded.

        Raises:
            UserError: some are not there.
        """
        rows: list[Tensor] = []
        for chunk in self.chunks:
            part = self._read(reader, chunk)
            if part is None:
                raise UserError(
                    f"{self._path(reader, chunk)} is missing: something removed it, or the processes do not share the "
                    "cache directory; set XDG_CACHE_HOME to one that they share, and evaluate again"
                )
            rows.append(part)
        width = max(part.shape[1] for part in rows)
        # Where none of a file's images could be decoded, nobody knew how many features there are.
        return torch.cat([part if part.shape[1] == width else part.expand(-1, width) for part in rows])

    def remove(self, reader: str = "") -> None:
        """Remove what is kept of this source, by one reader or by all."""
        shutil.rmtree(self.directory / reader, ignore_errors=True)

    def _path(self, reader: str, chunk: int) -> Path:
        return self.directory / reader / f"{chunk:06d}.safetensors"

    def _read(self, reader: str, chunk: int) -> Tensor | None:
        try:
            features = safetensors.torch.load(unsealed(self._path(reader, chunk).read_bytes()))["features"]
        except (OSError, ValueError, SafetensorError, KeyError):
            return None
        return features if len(features) == len(self.numbers(chunk)) else None
