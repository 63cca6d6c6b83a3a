"""The state of a training run: both players, the moving average, and how they are kept in checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastt2i.config import Config, ModelConfig
from fastt2i.engine.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from fastt2i.engine.distributed.world import World
from fastt2i.engine.ema import Ema
from fastt2i.engine.initial_model import start_from
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.errors import UserError
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.sections import read_section
from fastt2i.text.features import TextFeatures


class TrainingState:
    """The networks of a run at some step.

    Args:
        config: of the run; its seed makes the first weights.
        captions: features of training captions, a sample of all: the networks take their mean and covariance.
        text_digest: SHA-256 of the language model that made them.
        text_sample: some of its features, as `TextEncoder.sample`.
        device: where the networks live.
        precision: arithmetic of the run.
        world: the processes of the run; one by default.
        is_language_model: whether digest and sample in a checkpoint are that language model's; by default, whether the
            digest is equal.

    Raises:
        UserError: the optimizers cannot be made.
    """

    def __init__(
        self,
        config: Config,
        *,
        captions: TextFeatures,
        text_digest: str,
        text_sample: Sequence[float] = (),
        device: torch.device,
        precision: Precision,
        world: World | None = None,
        is_language_model: Callable[[str, Sequence[float]], bool] | None = None,
    ) -> None:
        torch.manual_seed(config.train.seed)
        generator = Generator(config.model, captions.sentence.shape[-1])
        discriminator = Discriminator(config.model, captions.sentence.shape[-1], captions.keywords.shape[-1])
        generator.fit(captions)
        discriminator.fit(captions)
        self._is_language_model = is_language_model or (lambda digest, sample: digest == text_digest)
        for module in (generator, discriminator):
            module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = make_player("generator", generator, config.optim, precision, world)
        self.discriminator = make_player("discriminator", discriminator, config.optim, precision, world)
        self.ema = Ema(generator, config.optim.ema)
        self._config = config
        self._model = dataclasses.asdict(config.model)
        self._text = {"text_sha256": text_digest, "text_sample": list(text_sample)}

    def begin(self, captions: TextFeatures) -> str | None:
        """Take the weights of the model that a new run starts from, if it does from one; returns what was taken.

        Args:
            captions: as those that the state was made with.

        Raises:
            UserError: there is no such model, or it does not fit.
        """
        if not self._config.train.init_from:
            return None
        networks = self.generator.module, self.discriminator.module
        taken = start_from(self._config, *networks, self._is_language_model, captions)
        self.ema.module.load_state_dict(self.generator.module.state_dict())
        return taken

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint keeps as tensors, by part."""
        parts: dict[str, dict[str, Tensor]] = {"ema": self.ema.module.state_dict()}
        for player in (self.generator, self.discriminator):
            parts[player.name] = player.module.state_dict()
            parts[f"{player.name}_optimizer"] = optimizer_tensors(player.optimizer)
        return parts

    def plain(self) -> dict[str, Any]:
        """Everything that a checkpoint keeps as plain values."""
        scalers = {player.name: player.scaler.state_dict() for player in (self.generator, self.discriminator)}
        return {"identity": {"model": self._model, **self._text}, "scalers": scalers}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            UserError: it is of another model or language model.
        """
        self._check_identity(checkpoint.state["identity"], checkpoint)
        self.ema.module.load_state_dict(checkpoint.tensors["ema"])
        for player in (self.generator, self.discriminator):
            player.module.load_state_dict(checkpoint.tensors[player.name])
            restore_optimizer(player.optimizer, checkpoint.tensors[f"{player.name}_optimizer"])
            if player.scaler.is_enabled() and checkpoint.state["scalers"][player.name]:
                player.scaler.load_state_dict(checkpoint.state["scalers"][player.name])

    def _check_identity(self, saved: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        if not self._is_language_model(saved["text_sha256"], saved.get("text_sample", ())):
            raise UserError(f"{checkpoint.path} was trained with another language model; resume with the one it had")
        ours = self._model
        theirs = dataclasses.asdict(read_section(ModelConfig, saved["model"], str(checkpoint.path)))
        for name in ours:
            if ours[name] != theirs[name]:
                raise UserError(
                    f"{checkpoint.path} has model.{name} {theirs[name]}, but {ours[name]} was asked for; resume with "
                    "the same model, or start a new run with another --out"
                )
