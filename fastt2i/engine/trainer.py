"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import torch

from fastt2i.config import Config
from fastt2i.data.loaders.loader import Loader
from fastt2i.data.loaders.quarantine import Quarantine
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.distributed.world import World
from fastt2i.engine.evaluation import CaptionSet
from fastt2i.engine.execution.profiler import StepProfile
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.logging.loss_log import NonFiniteLoss
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.logging.run_logger import NullLogger, RunLogger
from fastt2i.engine.logging.samples import log_samples
from fastt2i.engine.precision import Precision
from fastt2i.engine.quarantine_log import QuarantineLog
from fastt2i.engine.saving import Best, Progress, RunSaver
from fastt2i.engine.scoring.run_evaluation import RunEvaluation
from fastt2i.engine.signals import StopRequest
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import StepInputs
from fastt2i.engine.trace_span import trace_span
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError


@dataclass(kw_only=True)
class Trainer:
    """A training run; `engine.build.build_trainer` puts its parts together."""

    config: Config
    directory: RunDirectory
    world: World
    device: torch.device
    precision: Precision
    data: TrainingData
    state: TrainingState
    runner: StepRunner
    captions: CaptionSet
    """Captions of sample grids and scores."""
    prompts: CaptionSet | None
    """The user's own prompts for sample grids."""
    evaluation: RunEvaluation | None
    """What chooses the best model; None where `model/` is to be the last one."""
    quarantine: QuarantineLog
    saver: RunSaver
    progress: Progress
    _logged_step: int = field(init=False, default=0)
    _clock_start: float = field(init=False, default=0.0)

    def train(self) -> int:
        """Run to the last step, or to the signal that stops it; returns the exit status.

        Raises:
            UserError: a loss is not finite, the disk is full, or too many images are bad.
        """
        self.world.run_on_rank0(self._note_config)
        with (
            closing(self._open_loader()) as loader,
            self._disk_errors(),
            closing(self._open_logger()) as logger,
            StopRequest(self.world) as stop,
            self.quarantine.listing_on_error(),
        ):
            batches = self._open_batches(loader, logger)
            self._start_clock()
            stopped = False
            while self.progress.step < self.config.train.steps and not (stopped := stop.requested()):
                self.runner(next(batches), self.progress.step)
                self.progress.step += 1
                self._log_and_save(logger, loader.quarantine)
            if stopped:
                self._log_losses(logger, loader.quarantine)
                self._save()
            else:
                self.saver.complete(self.progress, self._example_prompts())
            if summary := self.quarantine.summary():
                logger.print(summary)
            if stopped and stop.signal:
                logger.print(f"stopped by {stop.signal.name} at step {self.progress.step}; go on with --resume")
            return stop.exit_status if stopped else 0

    def _note_config(self) -> None:
        with self._disk_errors():
            self.directory.note(self.config)

    def _open_loader(self) -> Loader:
        assert self.progress.loader is not None
        with self.world.raise_together(), self.quarantine.listing_on_error():
            return self.data.open_loader(self.progress.loader, self.progress.step, self.quarantine.problems)

    def _open_logger(self) -> NullLogger:
        if not self.world.is_first:
            return NullLogger()
        return RunLogger(
            self.directory,
            self.config.log,
            first_step=self.progress.step,
            steps=self.config.train.steps,
            scored="held-out" if len(self.data.heldout) else "training",
        )

    def _open_batches(self, loader: Loader, logger: NullLogger) -> Iterator[StepInputs]:
        source = InputSource(
            loader,
            self.data.features,
            self.data.index.classes,
            noise_dim=self.state.ema.module.noise_dim,
            draws=draws_per_image(self.config.loss.augment),
            seed=self.config.train.seed,
            first_step=self.progress.step,
            device=self.device,
            world=self.world,
        )
        if not self.config.engine.profile:
            return iter(source)
        # Every rank profiles: counting FLOPs runs collective operations.
        rank = "" if self.world.size == 1 else f"-rank-{self.world.rank}"
        return StepProfile(
            self.runner.step,
            self.precision,
            self.device,
            self.directory.path / "profile" / f"trace-from-{self.progress.step:08d}{rank}.json.gz",
            steps=range(self.progress.step, self.config.train.steps),
            settled=lambda: self.runner.compiled is not None,
            print_line=logger.print,
        ).watch(source)

    def _log_and_save(self, logger: NullLogger, quarantine: Quarantine) -> None:
        """What is due after a step."""
        step, log = self.progress.step, self.config.log
        last = step == self.config.train.steps
        samples_due = last or step % log.samples_every == 0
        checkpoint_due = last or step % self.config.checkpoint.every == 0
        evaluation_due = self.evaluation is not None and (last or step % log.evaluate_every == 0)
        if samples_due or checkpoint_due or evaluation_due or step % log.every == 0:
            with trace_span("log"):
                self._log_losses(logger, quarantine)  # first, so that weights that are not finite are never saved
        if samples_due and self.world.is_first:
            with trace_span("samples and scores"), self.precision.in_force():
                self._log_samples(logger)
        if evaluation_due:
            with trace_span("evaluation"), self.precision.in_force():
                self._evaluate(logger)
        if checkpoint_due:
            with trace_span("save"):
                self._save()

    def _log_losses(self, logger: NullLogger, quarantine: Quarantine) -> None:
        """Read the losses back from the device: the only place where the host waits for it."""
        steps = self.progress.step - self._logged_step
        if not steps:
            return
        try:
            losses = self.runner.losses.read()
        except NonFiniteLoss as error:
            raise self.world.as_collective_error(
                UserError(
                    f"the loss {error.name} is not finite at step {error.step}; {self.saver.last_good()}; try lower "
                    "learning rates" + ("" if self.precision.name == "fp32" else " or --train.precision fp32")
                )
            ) from error
        self.quarantine.update(quarantine)
        elapsed = self._start_clock()
        self.progress.seconds += elapsed
        logger.log_losses(
            self.progress.step,
            losses
            | {
                "images_per_second": steps * self.config.train.batch_size / elapsed,
                "seconds": self.progress.seconds,
                "quarantined": len(self.quarantine.problems),
            }
            | self.runner.findings(),
        )

    def _log_samples(self, logger: NullLogger) -> None:
        with self._beside_steps():
            self.progress.scores = log_samples(
                logger, self.progress.step, self.captions, self.prompts, self.state, self.data.encoder, self.config
            )

    def _evaluate(self, logger: NullLogger) -> None:
        """Score the model, and keep it where it is the best so far."""
        assert self.evaluation is not None
        with self._beside_steps():
            scores = self.evaluation.score(self.saver.pretrained(self.progress, []), self.world)
            if not self.world.is_first:  # the others have no scores, and nothing of theirs depends on them
                return
            name, best = self.config.log.best, self.progress.best
            better = best is None or best.is_beaten_by(name, scores[name])
            if better:
                self.progress.best = Best(name, scores[name], self.progress.step)
                self.saver.save_model(self.progress, self._example_prompts())
            logger.log_evaluation(self.progress.step, scores, best=better)

    @contextmanager
    def _beside_steps(self) -> Iterator[None]:
        """The time that this block takes counts as the run's, and not as the steps'."""
        started = time.perf_counter()
        yield
        self.progress.seconds += time.perf_counter() - started
        self._start_clock()

    def _start_clock(self) -> float:
        """Time the steps from now on; returns the seconds since the last call."""
        now, before = time.perf_counter(), self._clock_start
        self._clock_start, self._logged_step = now, self.progress.step
        return now - before

    def _save(self) -> None:
        progress = replace(self.progress, compiled=self.runner.compiling_pays, quarantined=self.quarantine.problems)
        self.saver.save(progress, self._example_prompts())

    def _example_prompts(self) -> list[str]:
        return list(dict.fromkeys(self.captions.captions))[:8]

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the run cannot be kept in {self.directory.path}: {error.strerror or error}; "
                f"{self.saver.last_good()}; put that right and go on with --resume"
            ) from error
