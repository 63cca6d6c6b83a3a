"""Optimizers by name, and what of them is kept in a checkpoint."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from fastt2i.config import OptimConfig
from fastt2i.engine.checkpoint import optimizer_tensors, restore_optimizer
from fastt2i.engine.optim import Player, make_player
from fastt2i.engine.precision import Precision
from fastt2i.errors import UserError

FP32 = Precision("fp32", torch.device("cpu"))


class FusedAdam(torch.optim.Adam):
    """What NVIDIA Apex's has beside torch's Adam: its arguments, and one count of steps for all parameters."""

    def __init__(self, params: Any, *, adam_w_mode: bool, capturable: bool, **options: Any) -> None:
        assert not adam_w_mode and capturable
        super().__init__(params, **options)

    def zero_grad(self) -> None:  # type: ignore[override]
        super().zero_grad()

    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        group["step"] = group.get("step", torch.zeros(1, dtype=torch.int32)) + 1
        super().step(closure)


def minimize(player: Player[Any], loss: torch.Tensor) -> None:
    player.zero_grad()
    player.backward(loss)
    player.step()


def install(monkeypatch: pytest.MonkeyPatch, **names: object) -> None:
    optimizers = types.ModuleType("apex.optimizers")
    vars(optimizers).update(names)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.mark.parametrize("there", [False, True])
def test_apex_that_is_missing_or_another_project_is_one_sentence(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        install(monkeypatch)  # PyPI's
    with pytest.raises(UserError, match=r"NVIDIA Apex, .*, is not installed; it is built from its source"):
        make_player("generator", torch.nn.Linear(2, 2), OptimConfig(name="apex"), FP32)


def test_apex_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FusedAdam=FusedAdam)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="FusedAdam needs a GPU, and torch sees none here; use adam"):
        make_player("generator", torch.nn.Linear(2, 2), OptimConfig(name="apex"), FP32)


@pytest.mark.parametrize("name", ["adam", "apex"])
def test_what_is_restored_goes_on_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FusedAdam=FusedAdam)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.manual_seed(0)
    first, second = (torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last) for _ in range(2))
    players = [make_player("generator", module, OptimConfig(name=name, beta1=0.5), FP32) for module in (first, second)]
    for _ in range(3):
        minimize(players[0], first.weight.square().sum() + first.bias.sum())
    second.load_state_dict(first.state_dict())
    saved = {key: value.clone() for key, value in optimizer_tensors(players[0].optimizer).items()}
    restore_optimizer(players[1].optimizer, saved)
    for player, module in zip(players, (first, second), strict=True):
        player.set_lr(0.01)
        minimize(player, module.weight.square().sum() + module.bias.sum())
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert ("group.step" in saved) == (name == "apex")
    if name == "apex":
        assert players[1].optimizer.param_groups[0]["step"].item() == 4


def test_a_step_that_fails_before_the_scaler_is_done_lets_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it cannot be captured in a CUDA graph."""
    module = torch.nn.Linear(2, 2)
    player = make_player("generator", module, OptimConfig(), Precision("fp16", torch.device("cpu")))
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="not this time"):
        patched.setattr(torch, "_amp_update_scale_", fail)
        minimize(player, module.weight.square().sum())
    before = module.weight.detach().clone()
    minimize(player, module.weight.square().sum())
    assert not torch.equal(module.weight, before)


def fail(*_: object) -> None:
    raise RuntimeError("not this time")


def networks() -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"blocks": torch.nn.Linear(3, 3), "blocks_of_others": torch.nn.Linear(3, 3)})


def test_frozen_parts_stay_and_the_others_learn() -> None:
    config = OptimConfig(freeze=("generator.blocks", "discriminator.blocks_of_others"))
    for name, frozen, trained in (
        ("generator", "blocks", "blocks_of_others"),
        ("discriminator", "blocks_of_others", "blocks"),
    ):
        module = networks()
        player = make_player(name, module, config, FP32)
        before = {part: module[part].weight.detach().clone() for part in module}
        player.requires_grad_(False)
        player.requires_grad_(True)
        minimize(player, sum(module[part](torch.ones(1, 3)).square().sum() for part in module))
        assert torch.equal(module[frozen].weight, before[frozen])
        assert not torch.equal(module[trained].weight, before[trained])
        # What is saved can be gone on with when more is trained.
        other = make_player(name, networks(), OptimConfig(), FP32)
        restore_optimizer(other.optimizer, optimizer_tensors(player.optimizer))
        minimize(other, sum(other.module[part](torch.ones(1, 3)).square().sum() for part in other.module))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("blocks",), "optim.freeze names blocks; a part begins with generator or discriminator"),
        (("generator.block",), "has nothing to train; there are generator.blocks, generator.blocks_of_others"),
        (("generator",), "leaves nothing of the generator to train"),
        (("generator.blocks", "generator.blocks_of_others"), "leaves nothing of the generator to train"),
    ],
)
def test_parts_that_cannot_be_frozen(parts: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_player("generator", networks(), OptimConfig(freeze=parts), FP32)
