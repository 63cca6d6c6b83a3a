"""The training run, as an outline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import torch
from torch import Tensor

import fastt2i
from fastt2i.config import Config
from fastt2i.data.dataset import Problem
from fastt2i.data.loaders.loader import LoaderName
from fastt2i.data.loaders.quarantine import Quarantine, TooManyBad
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.checkpoint import CheckpointStore
from fastt2i.engine.distributed.world import World
from fastt2i.engine.execution.allocator import keep_freed_memory
from fastt2i.engine.execution.gradient_cache import AccumulatedStep
from fastt2i.engine.execution.profiler import StepProfile
from fastt2i.engine.execution.spans import span
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.logging.loss_log import NonFiniteLoss
from fastt2i.engine.logging.report import Report, Silence
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.precision import Precision
from fastt2i.engine.schedule import Clock
from fastt2i.engine.signals import StopRequest
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import TrainStep
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError
from fastt2i.models.model_card import model_card, parameter_count
from fastt2i.models.pretrained import PretrainedModel, save_pretrained
from fastt2i.ops import tuning


def choose_device(name: str, world: World | None = None) -> torch.device:
    """The device that `engine.device` names; each process of a machine has a GPU of its own.

    Raises:
        UserError: a GPU is asked for and there is none, or there are fewer than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if world is None or world.size == 1:
        return torch.device("cuda")
    gpus = torch.cuda.device_count()
    if world.local_rank >= gpus:
        raise UserError(
            f"this is process {world.local_rank + 1} of its machine, on which torch sees {gpus} GPUs; start one for "
            f"each (--nproc-per-node={gpus}), or take --engine.device cpu"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


class Trainer:
    """One run, new or resumed.

    Args:
        config: of the run.
        directory: where it is kept.
        world: the processes of the run; one by default.

    Raises:
        UserError: data, language model, output folder or checkpoint cannot be used.
    """

    def __init__(self, config: Config, directory: RunDirectory, world: World | None = None) -> None:
        self.config = config
        self.directory = directory
        self.world = world or World()
        say = self.world.print_rank0
        keep_freed_memory()
        with self.world.raise_together():
            _check_sharing(config, self.world)
            self.device = choose_device(config.engine.device, self.world)
            self.precision = Precision(config.train.precision, self.device)
            self.data = TrainingData(config, self.device, self.world)
            self.state = TrainingState(
                config,
                captions=self.data.sample_features(),
                text_digest=self.data.encoder.digest,
                device=self.device,
                precision=self.precision,
                world=self.world,
            )
        self._compare_ranks()
        self.checkpoints = CheckpointStore(directory.checkpoints, config.checkpoint.keep)
        self.captions = self.data.caption_set(self.state.ema.module.noise_dim)
        self.scores: dict[str, float] = {}
        self.seconds = 0.0
        self.quarantined: list[Problem] = []
        self._loader_before: LoaderName | None = None
        self._compiled_before: bool | None = None
        self.step = self._resume()
        self.loader, why = self.world.run_on_rank0(lambda: self.data.choose_loader(self._loader_before))
        say(f"loader: {self.loader}; {why}")
        self.run_step = self._make_runner()
        self._logged, self._since = self.step, time.perf_counter()
        self._told, self._listed = len(self.quarantined), False
        say(self._describe())
        if self.step >= config.train.steps:
            say(f"all {config.train.steps} steps are taken; --train.steps with a larger number goes on")

    def _make_runner(self) -> StepRunner:
        config, state = self.config, self.state
        step = TrainStep(config.loss, state.generator, state.discriminator, state.ema, self.precision, self.world)
        if config.train.accumulate > 1:
            step = AccumulatedStep(step, config.train.accumulate)
        return StepRunner(
            step,
            Clock(config.optim, config.train.steps, (state.generator, state.discriminator), state.ema),
            config.engine,
            device=self.device,
            steps=config.train.steps,
            compiled_before=self._compiled_before,
            say=self.world.print_rank0,
        )

    def train(self) -> int:
        """Run to the last step, or to the signal that stops it; returns the exit status.

        Raises:
            UserError: a loss is not finite, the disk is full, or too many images are bad.
        """
        config = self.config
        self.world.run_on_rank0(lambda: self.directory.note(config))
        with self.world.raise_together(), self._bad_images_listed():
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
            world=self.world,
        )
        report = self._open_report() if self.world.is_first else Silence()
        self._since = time.perf_counter()
        try:
            with (
                closing(loader),
                closing(report),
                StopRequest(self.world) as stop,
                self._tuning(),
                self._bad_images_listed(),
            ):
                batches = self._profile(report).watch(inputs) if config.engine.profile else iter(inputs)
                stopped = False
                while self.step < config.train.steps and not (stopped := stop.asked()):
                    self.run_step(next(batches), self.step)
                    self.step += 1
                    self._after_step(report, loader.quarantine)
                if stopped:
                    self._log(report, loader.quarantine)
                    self._save()
                if self.quarantined:
                    report.say(
                        f"{len(self.quarantined)} images could not be decoded, and others took their places; "
                        f"{self.directory.quarantine} lists them with reasons"
                    )
                if stopped and stop.signal:
                    report.say(f"stopped by {stop.signal.name} at step {self.step}; go on with --resume")
                return stop.exit_status if stopped else 0
        except OSError as error:
            raise UserError(
                f"the run cannot be kept in {self.directory.path}: {error.strerror or error}; {self._last_good()}; "
                "put that right and go on with --resume"
            ) from error

    def _open_report(self) -> Report:
        return Report(
            self.directory,
            self.config.log,
            first_step=self.step,
            steps=self.config.train.steps,
            scored="held-out" if len(self.data.heldout) else "training",
        )

    def _profile(self, report: Silence) -> StepProfile:
        # All ranks look, for what is counted on the way takes part of all.
        rank = "" if self.world.size == 1 else f"-rank-{self.world.rank}"
        path = self.directory.path / "profile" / f"trace-from-{self.step:08d}{rank}.json.gz"
        return StepProfile(
            self.run_step.step,
            self.precision,
            self.device,
            path,
            steps=range(self.step, self.config.train.steps),
            settled=lambda: self.run_step.compiled is not None,
            say=report.say,
        )

    def _tuning(self) -> AbstractContextManager[None]:
        tune = self.config.engine.tune
        return tuning() if tune == "on" or (tune == "auto" and self.device.type == "cuda") else nullcontext()

    def _after_step(self, report: Silence, quarantine: Quarantine) -> None:
        log, last = self.config.log, self.step == self.config.train.steps
        show = last or self.step % log.samples_every == 0
        save = last or self.step % self.config.checkpoint.every == 0
        if show or save or self.step % log.every == 0:
            with span("log"):
                self._log(report, quarantine)  # first, so that weights which are not finite are never saved
        if show and self.world.is_first:
            with span("samples and scores"), self.precision.in_force():
                self._show(report)
        if save:
            with span("save"):
                self._save()

    def _log(self, report: Silence, quarantine: Quarantine) -> None:
        """Read the losses back from the device: the only place where the host waits for it."""
        steps = self.step - self._logged
        if not steps:
            return
        try:
            losses = self.run_step.losses.read()
        except NonFiniteLoss as error:
            raise self.world.as_collective_error(
                UserError(
                    f"the loss {error.name} is not finite at step {error.step}; {self._last_good()}; try lower "
                    "learning rates" + ("" if self.precision.name == "fp32" else " or --train.precision fp32")
                )
            ) from error
        self._note_quarantined(quarantine)
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
            }
            | self.run_step.findings(),
        )

    def _note_quarantined(self, quarantine: Quarantine) -> None:
        """Put together what all ranks have found, and judge it; quarantine: what this one has."""
        found = self.world.all_gather_object((quarantine.problems[self._told :], quarantine.tally))
        self._told = len(quarantine.problems)
        self._list_quarantined(problem for problems, _ in found for problem in problems)
        try:
            quarantine.judge(self.quarantined, [tally for _, tally in found])
        except TooManyBad as error:
            raise self.world.as_collective_error(self._listed_in(error)) from error

    def _list_quarantined(self, problems: Iterable[Problem]) -> None:
        known = {problem.where: problem for problem in self.quarantined}
        for problem in problems:
            known.setdefault(problem.where, problem)
        if self._listed and len(known) == len(self.quarantined):
            return
        self.quarantined, self._listed = list(known.values()), True
        if self.world.is_first:
            self.directory.write_quarantine([*self.data.index.problems, *self.quarantined])

    @contextmanager
    def _bad_images_listed(self) -> Iterator[None]:
        """List the bad images before they end the run, where a loader says by itself that they are too many."""
        try:
            yield
        except TooManyBad as error:
            self._list_quarantined(error.problems)
            if self.world.is_first:
                raise self._listed_in(error) from error
            raise

    def _listed_in(self, error: TooManyBad) -> UserError:
        return UserError(f"{error}; {self.directory.quarantine} lists them with reasons")

    def _last_good(self) -> str:
        newest, _ = self.checkpoints.latest()
        return f"the last good checkpoint is {newest.path}" if newest else "there is no checkpoint yet"

    def _show(self, report: Silence) -> None:
        """Samples and scores of the averaged generator; its time counts as the run's, not as the steps'."""
        started = time.perf_counter()
        generator = self.state.ema.module
        self.scores = self.captions.score(generator, self.state.discriminator.module)
        images = self.captions.draw(generator, self.config.log.samples)
        report.samples(self.step, images, self.captions.captions[: len(images)], self.scores)
        self._show_attention(report, images[: self.config.log.attention])
        self.seconds += time.perf_counter() - started
        self._since = time.perf_counter()

    def _show_attention(self, report: Silence, images: Tensor) -> None:
        captions = self.captions.captions[: len(images)]
        if captions:
            attention = self.captions.attention(images, self.state.discriminator.module, self.config.loss)
            words = [self.data.encoder.keywords(caption) for caption in captions]
            report.attention(self.step, images, captions, words, attention)

    def _save(self) -> None:
        """Write a checkpoint, and the model folder that everything but training reads."""
        if not self.world.is_first:
            return
        state = self.state.plain() | {
            "seconds": self.seconds,
            "scores": self.scores,
            "data": self.data.digest,
            "loader": self.loader,
            "compiled": self.run_step.compiling_pays,
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

    def _compare_ranks(self) -> None:
        """All ranks must see the same data and have devices of one kind, and start from the same weights to the bit."""
        for what, mine in (
            ("data", self.data.digest),
            ("language model", self.data.encoder.digest),
            ("kind of device", self.device.type),
        ):
            seen = self.world.all_gather_object(mine)
            other = next((rank for rank, its in enumerate(seen) if its != seen[0]), None)
            if other is not None:
                raise self.world.as_collective_error(
                    UserError(f"rank {other} has another {what} than rank 0; all ranks need the same")
                )
        for part in self.state.tensors().values():
            for tensor in part.values():
                self.world.broadcast_(tensor)

    def _resume(self) -> int:
        """Go back to the newest whole checkpoint, if there is one; returns the steps taken."""
        say = self.world.print_rank0
        checkpoint, damage = self.world.run_on_rank0(self.checkpoints.latest)
        for sentence in damage:
            say(f"warning: {sentence}; an earlier checkpoint is used")
        if checkpoint is None:
            return 0
        with self.world.raise_together():
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
            + (f" and {self.world.size - 1} more" if self.world.size > 1 else "")
        )


def _check_sharing(config: Config, world: World) -> None:
    batch, size = config.train.batch_size, world.size
    if batch % size:
        near = max(size, round(batch / size) * size)
        raise UserError(
            f"train.batch_size is {batch}, which {size} processes cannot share evenly; take a multiple of {size}, "
            f"as {near}"
        )
    parts = config.train.accumulate
    if batch // size % parts:
        raise UserError(
            f"train.accumulate is {parts}, but each of {size} processes has {batch // size} images of a step, which do "
            f"not go into {parts} even parts; take a divisor of {batch // size}"
        )
    if batch // size < 2 and not config.loss.gather:
        raise UserError(
            f"train.batch_size is {batch}, one image for each of {size} processes, and without loss.gather captions "
            "are told apart within a process; take a larger batch, or --loss.gather"
        )
    if size > 1 and config.loss.gather and config.engine.compile == "on":
        raise UserError(
            "engine.compile is on, but what gathers the captions of several processes cannot be compiled; take "
            "--engine.compile off, or --loss.no-gather"
        )
