"""The training run, as an outline."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

import torch
from torch import Tensor

import fastt2i
from fastt2i.augment import draws_per_image
from fastt2i.config import Config
from fastt2i.data.index import Problem
from fastt2i.data.loaders import LoaderName
from fastt2i.engine.checkpoint import CheckpointStore
from fastt2i.engine.clock import Clock
from fastt2i.engine.data import TrainingData
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.loss_log import NonFiniteLoss
from fastt2i.engine.memory import keep_freed_memory
from fastt2i.engine.precision import Precision
from fastt2i.engine.profile import StepProfile
from fastt2i.engine.report import Report
from fastt2i.engine.run_directory import RunDirectory
from fastt2i.engine.run_step import StepRunner
from fastt2i.engine.signals import StopRequest
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import TrainStep
from fastt2i.errors import UserError
from fastt2i.model_card import model_card, parameter_count
from fastt2i.models.pretrained import PretrainedModel, save_pretrained
from fastt2i.ops import tuning


def choose_device(name: str) -> torch.device:
    """The device that `engine.device` names.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Trainer:
    """One run, new or resumed.

    Args:
        config: of the run.
        directory: where it is kept.
        say: tells the user what is going on.

    Raises:
        UserError: data, language model, output folder or checkpoint cannot be used.
    """

    def __init__(self, config: Config, directory: RunDirectory, say: Callable[[str], None] = print) -> None:
        self.config = config
        self.directory = directory
        self.device = choose_device(config.engine.device)
        keep_freed_memory()
        self.precision = Precision(config.train.precision, self.device)
        self.data = TrainingData(config, self.device, say)
        self.state = TrainingState(
            config,
            captions=self.data.sample_features(),
            text_digest=self.data.encoder.digest,
            device=self.device,
            precision=self.precision,
        )
        self.checkpoints = CheckpointStore(directory.checkpoints, config.checkpoint.keep)
        self.captions = self.data.caption_set(self.state.ema.module.noise_dim)
        self.scores: dict[str, float] = {}
        self.seconds = 0.0
        self.quarantined: list[Problem] = []
        self._loader_before: LoaderName | None = None
        self._compiled_before: bool | None = None
        self.step = self._resume(say)
        self.loader, why = self.data.choose_loader(self._loader_before)
        say(f"loader: {self.loader}; {why}")
        self.run_step = self._make_runner(say)
        self._logged, self._since, self._noted = self.step, time.perf_counter(), -1
        say(self._describe())
        if self.step >= config.train.steps:
            say(f"all {config.train.steps} steps are taken; --train.steps with a larger number goes on")

    def _make_runner(self, say: Callable[[str], None]) -> StepRunner:
        config, state = self.config, self.state
        return StepRunner(
            TrainStep(config.loss, state.generator, state.discriminator, state.ema, self.precision),
            Clock(config.optim, config.train.steps, (state.generator, state.discriminator), state.ema),
            config.engine,
            device=self.device,
            steps=config.train.steps,
            compiled_before=self._compiled_before,
            say=say,
        )

    def train(self) -> int:
        """Run to the last step, or to the signal that stops it; returns the exit status.

        Raises:
            UserError: a loss is not finite, the disk is full, or too many images are bad.
        """
        config = self.config
        self.directory.note(config)
        loader = self.data.open_loader(self.loader, self.step, self.quarantined)
        inputs = InputSource(
            loader,
            self.data.features,
            self.data.index.classes,
            noise_dim=self.state.ema.module.noise_dim,
            draws=draws_per_image(config.loss.augment),
            seed=config.train.seed,
            first_step=self.step,
            device=self.device,
        )
        report = Report(
            self.directory,
            config.log,
            first_step=self.step,
            steps=config.train.steps,
            scored="held-out" if len(self.data.heldout) else "training",
        )
        self._since = time.perf_counter()
        try:
            with closing(loader), closing(report), StopRequest() as stop, self._tuning():
                batches = self._profile(report).watch(inputs) if config.engine.profile else iter(inputs)
                while self.step < config.train.steps and not stop.signal:
                    self.run_step(next(batches), self.step)
                    self.step += 1
                    self.quarantined = loader.quarantined
                    self._after_step(report)
                if stop.signal:
                    self._log(report)
                    self._save()
                if self.quarantined:
                    report.say(
                        f"{len(self.quarantined)} images could not be decoded, and others took their places; "
                        f"{self.directory.quarantine} lists them with reasons"
                    )
                if stop.signal:
                    report.say(f"stopped by {stop.signal.name} at step {self.step}; go on with --resume")
                return stop.exit_status
        except OSError as error:
            raise UserError(
                f"the run cannot be kept in {self.directory.path}: {error.strerror or error}; {self._last_good()}; "
                "put that right and go on with --resume"
            ) from error

    def _profile(self, report: Report) -> StepProfile:
        path = self.directory.path / "profile" / f"trace-from-{self.step:08d}.json.gz"
        return StepProfile(self.run_step.step, self.precision, self.device, path, report.say)

    def _tuning(self) -> AbstractContextManager[None]:
        tune = self.config.engine.tune
        return tuning() if tune == "on" or (tune == "auto" and self.device.type == "cuda") else nullcontext()

    def _after_step(self, report: Report) -> None:
        log, last = self.config.log, self.step == self.config.train.steps
        show = last or self.step % log.samples_every == 0
        save = last or self.step % self.config.checkpoint.every == 0
        if show or save or self.step % log.every == 0:
            self._log(report)  # first, so that weights which are not finite are never saved
        if show:
            self._show(report)
        if save:
            self._save()

    def _log(self, report: Report) -> None:
        """Read the losses back from the device: the only place where the host waits for it."""
        steps = self.step - self._logged
        if not steps:
            return
        try:
            losses = self.run_step.losses.read()
        except NonFiniteLoss as error:
            raise UserError(
                f"the loss {error.name} is not finite at step {error.step}; {self._last_good()}; try lower learning "
                "rates" + ("" if self.precision.name == "fp32" else " or --train.precision fp32")
            ) from error
        now = time.perf_counter()
        elapsed = now - self._since
        self.seconds += elapsed
        self._logged, self._since = self.step, now
        report.log(
            self.step,
            losses
            | {
                "images_per_second": steps * self.config.train.batch_size / elapsed,
                "seconds": self.seconds,
                "quarantined": len(self.quarantined),
            },
        )
        if len(self.quarantined) != self._noted:
            self._noted = len(self.quarantined)
            self.directory.write_quarantine([*self.data.index.problems, *self.quarantined])

    def _last_good(self) -> str:
        newest, _ = self.checkpoints.latest()
        return f"the last good checkpoint is {newest.path}" if newest else "there is no checkpoint yet"

    def _show(self, report: Report) -> None:
        """Samples and scores of the averaged generator; its time counts as the run's, not as the steps'."""
        started = time.perf_counter()
        generator = self.state.ema.module
        self.scores = self.captions.score(generator, self.state.discriminator.module)
        images = self.captions.draw(generator, self.config.log.samples)
        report.samples(self.step, images, self.captions.captions[: len(images)], self.scores)
        self._show_attention(report, images[: self.config.log.attention])
        self.seconds += time.perf_counter() - started
        self._since = time.perf_counter()

    def _show_attention(self, report: Report, images: Tensor) -> None:
        captions = self.captions.captions[: len(images)]
        if captions:
            attention = self.captions.attention(images, self.state.discriminator.module, self.config.loss)
            words = [self.data.encoder.keywords(caption) for caption in captions]
            report.attention(self.step, images, captions, words, attention)

    def _save(self) -> None:
        """Write a checkpoint, and the model folder that everything but training reads."""
        state = self.state.plain() | {
            "seconds": self.seconds,
            "scores": self.scores,
            "data": self.data.digest,
            "loader": self.loader,
            "compiled": self.run_step.compiled,
            "quarantined": [(problem.where, problem.what) for problem in self.quarantined],
        }
        self.checkpoints.save(self.step, self.state.tensors(), state)
        model = self.pretrained()
        samples = sorted(self.directory.samples.glob("step-*.png"))
        try:
            save_pretrained(
                model,
                self.directory.model,
                model_card(model, str(self.directory.path)),
                {"samples.png": samples[-1].read_bytes()} if samples else {},
            )
        except OSError as error:
            raise UserError(f"cannot save the model in {self.directory.model}: {error.strerror}") from error

    def pretrained(self) -> PretrainedModel:
        """The model as it is now."""
        return PretrainedModel(
            config=self.config.model,
            text=self.config.text,
            text_digest=self.data.encoder.digest,
            sentence_dim=self.data.encoder.sentence_dim,
            idf=self.data.encoder.idf,
            generator=self.state.ema.module,
            discriminator=self.state.discriminator.module,
            facts={
                "steps": self.step,
                "batch_size": self.config.train.batch_size,
                "data": self.data.index.name,
                "images": len(self.data.index),
                "heldout": self.config.data.heldout,
                "fastt2i": fastt2i.__version__,
                "example_prompt": self.captions.captions[0],
            }
            | self.scores,
        )

    def _resume(self, say: Callable[[str], None]) -> int:
        """Go back to the newest whole checkpoint, if there is one; returns the steps taken."""
        checkpoint, damage = self.checkpoints.latest()
        for sentence in damage:
            say(f"warning: {sentence}; an earlier checkpoint is used")
        if checkpoint is None:
            return 0
        self.state.restore(checkpoint)
        self.seconds, self.scores = checkpoint.state["seconds"], checkpoint.state["scores"]
        self._compiled_before = checkpoint.state.get("compiled")
        say(f"resumed from {checkpoint.path} after {checkpoint.step} steps")
        if checkpoint.state["data"] != self.data.digest:
            say("warning: the data has changed since then; the samples will not be those of an uninterrupted run")
        else:
            self.quarantined = [Problem(*problem) for problem in checkpoint.state.get("quarantined", [])]
        self._loader_before = checkpoint.state.get("loader")
        return checkpoint.step

    def _describe(self) -> str:
        generator, discriminator = (parameter_count(p.module) for p in (self.state.generator, self.state.discriminator))
        return (
            f"model: {self.config.model.image_size} px, generator {generator / 1e6:.2f} M parameters, "
            f"discriminator {discriminator / 1e6:.2f} M; {self.precision.name} on {self.device}"
        )
