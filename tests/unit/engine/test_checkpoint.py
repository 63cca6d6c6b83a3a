"""Checkpoints: whole or not there, the newest whole one is found, optimizers come back as they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastt2i.engine.checkpoint import CheckpointStore, optimizer_tensors, restore_optimizer
from fastt2i.errors import UserError


def save(store: CheckpointStore, step: int) -> Path:
    return store.save(step, {"net": {"w": torch.full((1000,), float(step))}}, {"seconds": step / 2})


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() == (None, [])
    for step in (5, 10, 1000):
        save(store, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00001000"]
    checkpoint, damage = store.latest()
    assert checkpoint is not None and damage == []
    assert checkpoint.step == 1000 and checkpoint.state == {"seconds": 500}
    assert torch.equal(checkpoint.tensors["net"]["w"], torch.full((1000,), 1000.0))


def test_only_what_the_run_saved_is_pruned_or_read(tmp_path: Path) -> None:
    """Copies, archives and links beside checkpoints are the user's own, whatever they are called."""
    store = CheckpointStore(tmp_path, keep=1)
    first = save(store, 1)
    shutil.copytree(first, tmp_path / "step-00000001-best")
    shutil.copytree(first, tmp_path / "elsewhere")
    (tmp_path / "step-00000009").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "step-00000008").write_text("a file")
    (tmp_path / "step-00000007.zip").write_text("an archive")
    own = {path.name for path in tmp_path.iterdir()} - {first.name}
    for step in (2, 3):
        save(store, step)
    assert {path.name for path in tmp_path.iterdir()} == own | {"step-00000003"}
    checkpoint, damage = store.latest()
    assert checkpoint is not None and checkpoint.step == 3 and damage == []


@pytest.mark.parametrize("file", ["net.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(tmp_path: Path, file: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1)
    path = save(store, 2) / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    checkpoint, sentences = store.latest()
    assert checkpoint is not None and checkpoint.step == 1
    assert len(sentences) == 1 and file in sentences[0]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save a checkpoint in .*there is no earlier one"):
        save(CheckpointStore(tmp_path / "file" / "checkpoints", keep=1), 1)


def test_an_optimizer_goes_on_as_if_it_had_never_stopped() -> None:
    def make() -> tuple[torch.nn.Conv2d, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
        return module, torch.optim.Adam(module.parameters(), lr=0.1, fused=True)

    def advance(module: torch.nn.Conv2d, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            module(torch.full((2, 4, 5, 5), float(step)).cumsum(2)).square().sum().backward()
            optimizer.step()

    whole, optimizer = make()
    advance(whole, optimizer, range(7))
    first, first_optimizer = make()
    advance(first, first_optimizer, range(3))
    second, second_optimizer = make()
    second.load_state_dict(first.state_dict())
    restore_optimizer(second_optimizer, {k: v.clone() for k, v in optimizer_tensors(first_optimizer).items()})
    advance(second, second_optimizer, range(3, 7))
    assert torch.equal(whole.weight, second.weight) and torch.equal(whole.bias, second.bias)
