"""Saves a run as a checkpoint and a model folder, and restores it from the newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fastt2i
from fastt2i.config import Config
from fastt2i.data.dataset import Problem
from fastt2i.data.loaders.loader import LoaderName
from fastt2i.engine.checkpoint import Checkpoint, CheckpointStore
from fastt2i.engine.distributed.world import World
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.state import TrainingState
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError
from fastt2i.files.atomic import remove_leftovers
from fastt2i.files.tensors import NotFinite
from fastt2i.models.model_card import model_card
from fastt2i.models.pretrained import PretrainedModel, save_pretrained, saved_steps


@dataclass(frozen=True)
class Best:
    """The best model of a run so far."""

    score: str
    """By which score."""
    value: float
    step: int

    def is_beaten_by(self, score: str, value: float) -> bool:
        """Whether another value is better; distances are better small. A value of another score always is."""
        if score != self.score:
            return True
        return value < self.value if score == "kid" else value > self.value


@dataclass
class Progress:
    """What a checkpoint keeps of a run beside its networks and optimizers."""

    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time that they took."""
    scores: dict[str, float] = field(default_factory=dict)
    """Latest scores, by name."""
    loader: LoaderName | None = None
    """The loader of the run; None before it is chosen."""
    compiled: bool | None = None
    """Whether compiled steps are faster; None where that was not measured."""
    quarantined: list[Problem] = field(default_factory=list)
    """Undecodable images that were found."""
    best: Best | None = None
    """The model in the model folder, where that is the best and not the last one."""

    def to_state(self, data_digest: str) -> dict[str, Any]:
        """Plain values for a checkpoint's `state.json`."""
        return {
            "seconds": self.seconds,
            "scores": self.scores,
            "data": data_digest,
            "loader": self.loader,
            "compiled": self.compiled,
            "quarantined": [(problem.where, problem.what) for problem in self.quarantined],
            "best": vars(self.best) if self.best else None,
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, data_digest: str) -> Progress:
        """Undecodable images are forgotten where the data is another one now."""
        state = checkpoint.state
        same_data = state["data"] == data_digest
        return cls(
            step=checkpoint.step,
            seconds=state["seconds"],
            scores=state["scores"],
            loader=state.get("loader"),
            compiled=state.get("compiled"),
            quarantined=[Problem(*problem) for problem in state.get("quarantined", [])] if same_data else [],
            best=Best(**state["best"]) if state.get("best") else None,
        )


class RunSaver:
    """Saves and restores a run.

    Args:
        config: of the run.
        directory: of the run.
        data: what it learns from.
        state: its networks.
        world: its processes, of which rank 0 writes.
    """

    def __init__(
        self, config: Config, directory: RunDirectory, data: TrainingData, state: TrainingState, world: World
    ) -> None:
        self._config, self._directory = config, directory
        self._data, self._state, self._world = data, state, world
        self._checkpoints = CheckpointStore(directory.checkpoints, config.checkpoint.keep)

    def restore(self) -> Progress:
        """Load the newest whole checkpoint into the state; where there is none, begin with rank 0's weights.

        Raises:
            UserError: it is of another model or language model, or there is no model to start from.
        """
        checkpoint, damage = self._world.run_on_rank0(self._checkpoints.latest)
        for sentence in damage:
            self._world.print_rank0(f"warning: {sentence}; an earlier checkpoint is used")
        if checkpoint is None:
            with self._world.raise_together():
                taken = self._state.begin(self._data.sample_features())
            if taken:
                self._world.print_rank0(taken)
            for part in self._state.tensors().values():
                for tensor in part.values():
                    self._world.broadcast_(tensor)
            return Progress()
        with self._world.raise_together():
            self._state.restore(checkpoint)
        self._world.print_rank0(f"resumed from {checkpoint.path} after {checkpoint.step} steps")
        if changed := _changed_settings(checkpoint.state.get("settings"), self._config.to_yaml()):
            self._world.print_rank0(f"settings changed since then: {changed}")
        if checkpoint.state["data"] != self._data.digest:
            self._world.print_rank0(
                "warning: the data has changed since then; the samples will not be those of an uninterrupted run"
            )
        return Progress.from_checkpoint(checkpoint, self._data.digest)

    def save(self, progress: Progress, prompts: Sequence[str]) -> None:
        """Write a checkpoint and, unless that holds the best one, the model folder; prompts: examples for its card.

        Raises:
            UserError: the disk is full or cannot be written, or a weight is not finite.
        """
        if not self._world.is_first:
            return
        state = self._state.plain() | progress.to_state(self._data.digest) | {"settings": self._config.to_yaml()}
        with self._only_finite(progress.step):
            self._checkpoints.save(progress.step, self._state.tensors(), state)
        if progress.best is None:
            self.save_model(progress, prompts)

    def save_model(self, progress: Progress, prompts: Sequence[str]) -> None:
        """Write the model folder; prompts: examples for its card.

        Raises:
            UserError: the disk is full or cannot be written, or a weight is not finite.
        """
        if not self._world.is_first:
            return
        model = self.pretrained(progress, prompts)
        pictures = {
            f"{name}.png": max(self._directory.samples.glob(f"{prefix}-*.png"), default=None)
            for name, prefix in (("samples", "step"), ("variations", "variations"))
        }
        try:
            with self._only_finite(progress.step):
                save_pretrained(
                    model,
                    self._directory.model,
                    model_card(model, str(self._directory.path)),
                    {name: newest.read_bytes() for name, newest in pictures.items() if newest},
                )
        except OSError as error:
            raise UserError(f"cannot save the model in {self._directory.model}: {error.strerror}") from error

    def complete(self, progress: Progress, prompts: Sequence[str]) -> None:
        """Do what is left to do after a run's last checkpoint, where it was killed between that and its end.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        if not self._world.is_first:
            return
        self._checkpoints.remove_old()
        remove_leftovers(self._directory.model)
        if progress.best is None and saved_steps(self._directory.model) != progress.step:
            self.save_model(progress, prompts)

    @contextmanager
    def _only_finite(self, step: int) -> Iterator[None]:
        """What the steps since the last loss have ruined is told, and not saved."""
        try:
            yield
        except NotFinite as error:
            raise UserError(
                f"{error} after step {step}, and is not saved; {self.last_good()}; try lower learning rates"
            ) from error

    def last_good(self) -> str:
        """A clause that names the newest whole checkpoint."""
        newest, _ = self._checkpoints.latest()
        return f"the last good checkpoint is {newest.path}" if newest else "there is no checkpoint yet"

    def pretrained(self, progress: Progress, prompts: Sequence[str]) -> PretrainedModel:
        """The model as it is now; prompts: examples for its card."""
        encoder = self._data.encoder
        return PretrainedModel(
            config=self._config.model,
            text=self._config.text,
            text_digest=encoder.digest,
            text_sample=encoder.sample,
            stop_words=encoder.stop_words,
            sentence_dim=encoder.sentence_dim,
            idf=encoder.idf,
            generator=self._state.ema.module,
            discriminator=self._state.discriminator.module,
            facts={
                "steps": progress.step,
                "batch_size": self._config.train.batch_size,
                "data": self._data.index.name,
                "images": len(self._data.index),
                "heldout": self._config.data.heldout,
                "region_variant": self._config.loss.region_variant,
                "gamma_attention": self._config.loss.gamma_attention,
                "fastt2i": fastt2i.__version__,
                "example_prompts": list(prompts),
            }
            | progress.scores
            | ({f"best_{progress.best.score}": progress.best.value} if progress.best else {}),
        )


def _changed_settings(before: str | None, now: str) -> str:
    """What differs between two configurations as `Config.to_yaml` writes them; before: None where none was kept."""
    import yaml

    if before is None or before == now:
        return ""
    old, new = (
        {f"{section}.{name}": value for section, own in yaml.safe_load(text).items() for name, value in own.items()}
        for text in (before, now)
    )
    return ", ".join(f"{name} {value} (was {old.get(name)})" for name, value in new.items() if old.get(name) != value)
