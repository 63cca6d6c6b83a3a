"""Builds the parts of a training run from its configuration."""

from __future__ import annotations

import torch

from fastt2i.config import Config
from fastt2i.devices.allocator import keep_freed_memory
from fastt2i.devices.selection import choose_device
from fastt2i.engine.distributed.world import World
from fastt2i.engine.execution.gradient_cache import AccumulatedStep
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.engine.execution.thread_count import choose_threads
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.precision import Precision
from fastt2i.engine.quarantine_log import QuarantineLog
from fastt2i.engine.run_memory import check_run_memory
from fastt2i.engine.saving import RunSaver
from fastt2i.engine.schedule import StepSchedule
from fastt2i.engine.scoring.run_evaluation import RunEvaluation
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import TrainStep
from fastt2i.engine.trainer import Trainer
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError
from fastt2i.models.model_card import parameter_count


def build_trainer(config: Config, directory: RunDirectory, world: World | None = None) -> Trainer:
    """A run, new or resumed; nothing is written yet.

    Args:
        config: of the run.
        directory: where it is kept.
        world: its processes; one by default.

    Raises:
        UserError: data, language model, output folder or checkpoint cannot be used.
    """
    world = world or World()
    keep_freed_memory()
    with world.raise_together():
        check_batch_sharing(config, world)
        device = choose_device(config.engine.device, world.local_rank if world.size > 1 else None)
        check_run_memory(config, device, world.size)
        precision = Precision(config.train.precision, device)
        data = TrainingData(config, device, world)
        state = TrainingState(
            config,
            captions=data.sample_features(),
            text_digest=data.encoder.digest,
            text_sample=data.encoder.sample,
            device=device,
            precision=precision,
            world=world,
            is_language_model=data.encoder.is_noted_as,
        )
    _check_ranks(world, data, device)
    saver = RunSaver(config, directory, data, state, world)
    real_distance = world.run_on_rank0(data.real_distance)
    world.print_rank0(_describe_mode_seeking(config, real_distance))
    captions = data.caption_set(state.ema.module.noise_dim, real_distance)
    progress = saver.restore()
    progress.loader, reason = world.run_on_rank0(lambda: data.choose_loader(progress.loader))
    world.print_rank0(f"loader: {progress.loader}; {reason}")
    trainer = Trainer(
        config=config,
        directory=directory,
        world=world,
        device=device,
        precision=precision,
        data=data,
        state=state,
        runner=_build_runner(config, state, precision, device, world, real_distance, compiled_before=progress.compiled),
        captions=captions,
        prompts=data.prompt_set(state.ema.module.noise_dim),
        evaluation=_build_evaluation(config, data, directory, device, world, real_distance),
        quarantine=QuarantineLog(directory, data.index.problems, progress.quarantined, world),
        saver=saver,
        progress=progress,
    )
    world.print_rank0(_describe(config, state, precision, device, world))
    if progress.step >= config.train.steps:
        world.print_rank0(f"all {config.train.steps} steps are taken; --train.steps with a larger number goes on")
    return trainer


def _build_evaluation(
    config: Config,
    data: TrainingData,
    directory: RunDirectory,
    device: torch.device,
    world: World,
    real_distance: float | None,
) -> RunEvaluation | None:
    if not config.log.evaluate_every:
        return None
    with world.raise_together():
        return RunEvaluation(config, data, directory.evaluation, device, real_distance)


def _build_runner(
    config: Config,
    state: TrainingState,
    precision: Precision,
    device: torch.device,
    world: World,
    real_distance: float | None,
    *,
    compiled_before: bool | None,
) -> StepRunner:
    step = TrainStep(config.loss, state.generator, state.discriminator, state.ema, precision, world, real_distance)
    if config.train.accumulate > 1:
        step = AccumulatedStep(step, config.train.accumulate)
    return StepRunner(
        step,
        StepSchedule(config.optim, config.train.steps, (state.generator, state.discriminator), state.ema),
        config.engine,
        device=device,
        steps=config.train.steps,
        compiled_before=compiled_before,
        print_line=world.print_rank0,
        threads=choose_threads(
            config.engine.threads,
            device,
            exact=precision.name == "fp32",
            alone=world.size == 1,
            print_line=world.print_rank0,
        ),
    )


def _check_ranks(world: World, data: TrainingData, device: torch.device) -> None:
    """Raise UserError on all ranks unless they have the same data, language model and kind of device."""
    for what, own in (
        ("data", data.digest),
        ("language model", data.encoder.digest),
        ("kind of device", device.type),
    ):
        gathered = world.all_gather_object(own)
        other = next((rank for rank, value in enumerate(gathered) if value != gathered[0]), None)
        if other is not None:
            raise world.as_collective_error(
                UserError(f"rank {other} has another {what} than rank 0; all ranks need the same")
            )


def _describe(config: Config, state: TrainingState, precision: Precision, device: torch.device, world: World) -> str:
    generator, discriminator = (parameter_count(p.module) for p in (state.generator, state.discriminator))
    return (
        f"model: {config.model.image_size} px, generator {generator / 1e6:.2f} M parameters, "
        f"discriminator {discriminator / 1e6:.2f} M; {precision.name} on {device}"
        + (f" and {world.size - 1} more" if world.size > 1 else "")
    )


def _describe_mode_seeking(config: Config, real_distance: float | None) -> str:
    if real_distance is None:
        return "mode seeking: off; most captions have one image, which does not show how much images of one differ"
    switch = "on" if config.loss.mode_seeking else "off, as loss.mode_seeking is 0"
    return (
        f"mode seeking: {switch}; two training images of one caption or class differ by {real_distance * 127.5:.1f} "
        "levels of 255"
    )


def check_batch_sharing(config: Config, world: World) -> None:
    """Raise UserError where the processes cannot share a batch evenly, or a loss needs more of it than one has."""
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
