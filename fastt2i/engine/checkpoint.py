"""Checkpoints: everything that a run needs to go on, in safetensors and JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.files.atomic import new_directory, write_file
from fastt2i.files.sealed import sealed, unsealed
from fastt2i.files.tensors import load_tensors, save_tensors

STATE_FILE = "state.json"
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk: the number of steps taken, its tensors by part, and plain state."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: where they are, one `step-*` folder each.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint under a temporary name, sync it, rename it, then remove the oldest.

        Raises:
            UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
            NotFinite: a tensor holds what is not finite; earlier checkpoints are untouched.
        """
        path = self.directory / f"step-{step:08d}"
        try:
            with new_directory(path) as temporary:
                digests = {part: save_tensors(temporary / _file(part), values) for part, values in tensors.items()}
                content = json.dumps({"step": step, "sha256": digests, "state": state}, indent=1).encode()
                write_file(temporary / STATE_FILE, sealed(content))
        except OSError as error:
            newest = max(self._paths(), default=None)
            kept = f"{newest} is whole: make room and go on with --resume" if newest else "there is no earlier one"
            raise UserError(f"cannot save a checkpoint in {self.directory}: {error.strerror}; {kept}") from error
        self.remove_old()
        return path

    def remove_old(self) -> None:
        """Remove all but the newest checkpoints, and what a process that was killed meanwhile has left of one."""
        for old in sorted(self._paths())[: -self._keep]:
            old.rename(old.with_name(f".{old.name}.old"))  # or a kill would leave a part of it under its name
        for leftover in (path for kind in ("old", "tmp") for path in self.directory.glob(f".step-*.{kind}")):
            shutil.rmtree(leftover)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a sentence for each newer one that is damaged."""
        damage: list[str] = []
        for path in sorted(self._paths(), reverse=True):
            try:
                return _load(path), damage
            except UserError as error:
                damage.append(str(error))
        return None, damage

    def _paths(self) -> list[Path]:
        """The folders that `save` made; copies under other names, archives and links are the user's own."""
        found = self.directory.glob("step-*")
        return [p for p in found if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]


def _file(part: str) -> str:
    return f"{part}.safetensors"


def _load(path: Path) -> Checkpoint:
    try:
        header = json.loads(unsealed((path / STATE_FILE).read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE_FILE} is damaged ({error})") from error
    tensors = {part: load_tensors(path / _file(part), digest) for part, digest in header["sha256"].items()}
    return Checkpoint(path, header["step"], tensors, header["state"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, named `<number of the parameter>.<name>`, or `group.<name>`."""
    saved = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, values in saved["state"].items() for name, value in values.items()}
    # NVIDIA Apex counts steps for all parameters together.
    group = {f"group.{name}": value for name, value in saved["param_groups"][0].items() if name == "step"}
    return tensors | group


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; learning rates stay the optimizer's own."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if index == "group":
            groups[0][name] = value.to(parameters[0].device)
            continue
        like = parameters[int(index)]
        # Fused optimizers walk a parameter and its moments in the order of memory: files are row-major, weights may be
        # channels-last.
        placed = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(index), {})[name] = placed
    optimizer.load_state_dict({"state": state, "param_groups": groups})
