"""Tensors in safetensors files with their digests: what checkpoints and model folders are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.files.atomic import sha256, write_file


class NotFinite(Exception):
    """A tensor that is to be saved holds what is infinite or not a number. Attributes: name: the tensor."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(f"{name} of the {path.stem.replace('_', ' ')} is not finite")
        self.name = name


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, wait until the disk has them, and return the file's SHA-256.

    Raises:
        NotFinite: a tensor holds what is not finite; nothing is written.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NotFinite(path, name)
    content = _serialized(tensors)
    write_file(path, content)
    return sha256(content)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 that their file would have."""
    return sha256(_serialized(tensors))


def _serialized(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def load_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    """Read tensors, on the CPU.

    Raises:
        UserError: the file is missing, cannot be read, holds no tensors, or is not the one whose SHA-256 is `digest`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if sha256(content) != digest:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not the one noted when it was saved; fetch or train it again"
        )
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is no safetensors file that can be read: {' '.join(str(error).split())}") from error
