"""NaN and infinity put into every loss, gradient, weight and moment at random steps of a run.

The run ends with a sentence, no checkpoint and no model holds what is not finite, and resumed it ends as if nothing had
happened.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastt2i.engine import step as step_module
from fastt2i.engine.ema import Ema
from fastt2i.engine.optim import Player
from tests.campaign.parts import Outcome, Part
from tests.campaign.processes import Fault, Job, patch_call, run
from tests.campaign.works import Inputs, training

#: The functions that give a step its losses, and how often a run of ten steps calls each.
LOSSES = {
    "discriminator_adversarial": 10,
    "generator_adversarial": 10,
    "region_match": 20,
    "sentence_match": 20,
    "r1_penalty": 4,
    "mode_seeking_loss": 10,
}
KINDS = ("loss", "gradient", "weight", "moment", "average")
VALUES = (float("nan"), float("inf"), float("-inf"))


class NotFinite(Part):
    name, unit, planned, share = "nan", "value", 120, 0.09

    def prepare(self, folder: Path) -> None:
        self._log = folder / "output.txt"
        # In float32, whatever the processor prefers: a scaler of gradients would leave such steps out.
        precision = ("--train.precision", "fp32", "--log.every", 3)
        self._work = training(folder / "work", Inputs.make(folder / "inputs"), *precision)
        self._whole = self._work.undisturbed(self._log)

    def trial(self, number: int, moments: random.Random) -> Outcome:
        self._work.clear()
        kind, value = KINDS[number % len(KINDS)], moments.choice(VALUES)
        place, job = _poisoned(self._work.begin, kind, value, moments)
        ended = run(job, self._log, self._work.environment)
        try:
            if ended.status == 0:
                self._work.assert_result(self._whole)  # it never came into play
            elif "not finite" not in (told := ended.told()):
                raise Fault(f"the sentence does not say what happened: {told}")
            self._work.check()
            run(self._work.go_on, self._log, self._work.environment).succeeded()
            self._work.assert_result(self._whole)
        except Fault as fault:
            raise Fault(f"{value} in {place}: {fault}") from fault
        return Outcome(1, Counter({f"{kind}, {'told' if ended.status else 'without effect'}": 1}))


def _poisoned(job: Job, kind: str, value: float, moments: random.Random) -> tuple[str, Job]:
    """Where the value goes, and the job with it there."""
    if kind == "loss":
        name = moments.choice(list(LOSSES))
        call = moments.randrange(LOSSES[name])
        return f"call {call} of {name}", lambda: patch_call(step_module, name, call, after=_scaled_by(value)) or job()
    call = moments.randrange(10 if kind == "average" else 20)
    place = moments.random()
    owner, name = (Ema, "update") if kind == "average" else (Player, "step")

    def put(result: Any, arguments: Sequence[Any]) -> Any:
        _put(_tensors(kind, arguments[0]), place, value)
        return result

    where: dict[str, Any] = {"before": put} if kind == "gradient" else {"after": put}
    return f"a {kind} at call {call} of {name}, {place:.4f}", lambda: patch_call(owner, name, call, **where) or job()


def _scaled_by(value: float) -> Callable[[Any, Sequence[Any]], Any]:
    return lambda loss, _: loss * value


def _tensors(kind: str, owner: Any) -> list[torch.Tensor]:
    if kind == "average":
        return list(owner.module.state_dict().values())
    if kind == "gradient":
        return [p.grad for p in owner.module.parameters() if p.grad is not None]
    if kind == "weight":
        return list(owner.module.parameters())
    return [state[name] for state in owner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def _put(tensors: Sequence[torch.Tensor], place: float, value: float) -> None:
    """Put a value into one number of the tensors; place: which, as a part of all tensors."""
    tensor = tensors[int(place * len(tensors))].detach()
    flat = torch.zeros(tensor.numel(), dtype=torch.bool)
    flat[int(place * 7919) % len(flat)] = True
    tensor.masked_fill_(flat.view(tensor.shape), value)
