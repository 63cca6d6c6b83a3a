"""`python -m fastt2i.train`: train a text-to-image model."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastt2i.cli import from_home, plain_warnings, python_command, run
from fastt2i.config import Config
from fastt2i.engine.distributed.rendezvous import join
from fastt2i.engine.distributed.world import World
from fastt2i.engine.logging.run_directory import (
    RunDirectory,
    choose_directory,
    claimed_directory,
    refuse_folder_of_images,
)
from fastt2i.presets import PRESETS, preset

HELP = {"-h", "--help"}
DESCRIPTION = """Train a text-to-image GAN on captioned images.

With no argument it learns the embedded set of drawn shapes on the CPU or GPU at hand in a few minutes. --data takes a
folder of your own: images with a .txt of captions beside each, or with a metadata.jsonl or metadata.csv. It also takes
CUB-200-2011, COCO, Oxford-102 flowers, Hugging Face parquet and WebDataset shards as they are.

Presets: """ + ", ".join(PRESETS)


@dataclass(kw_only=True)
class Arguments:
    preset: str = "demo"
    """Where the settings start from."""
    out: Path | None = None
    """Output folder; runs/<preset> by default."""
    resume: bool = False
    """Go on with the run in the output folder."""
    dry_run: bool = False
    """Print the resolved configuration, check the data and the models, and stop."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    with join() as world:
        return _train(list(sys.argv[1:] if argv is None else argv), world)


def _train(argv: list[str], world: World) -> int:
    # Processes that torchrun has restarted resume. Rank 0 alone looks at the output folder, and holds it.
    resume = ["--resume"] if world.restarted and "--resume" not in argv else []
    with ExitStack() as held:
        arguments, directory = world.run_on_rank0(lambda: _open([*argv, *resume], held))
        from fastt2i.devices.defaults import torch_defaults  # imports torch, which --help does without

        held.enter_context(torch_defaults())
        return _run(arguments, directory, world)


def _run(arguments: Arguments, directory: RunDirectory, world: World) -> int:
    from fastt2i.engine.build import build_trainer

    plain_warnings(shown=world.local_rank == 0)
    world.print_rank0(f"output: {directory.path}")
    if arguments.dry_run:
        world.print_rank0(arguments.config.to_yaml())
        build_trainer(arguments.config, directory, world)
        world.print_rank0("dry run: everything is in place; nothing was written to the output folder")
        return 0
    started = time.monotonic()
    trainer = build_trainer(arguments.config, directory, world)
    status = trainer.train()
    if status == 0 and world.is_first:
        print(_summary(trainer.captions.captions[0], directory, time.monotonic() - started), flush=True)
    return status


def _open(argv: list[str], held: ExitStack) -> tuple[Arguments, RunDirectory]:
    """The options and the run directory, which `held` holds; for a dry run nothing is written, and nothing held."""
    arguments = _parse(argv)
    refuse_folder_of_images(arguments.out, arguments.config.data.path)
    if arguments.dry_run:
        return arguments, choose_directory(arguments.out, arguments.preset, arguments.resume)
    return arguments, held.enter_context(claimed_directory(arguments.out, arguments.preset, arguments.resume))


def _parse(argv: list[str]) -> Arguments:
    """Two passes: the first finds where the settings start from, the second lets the options change them."""
    argv = [f"--data.path{a.removeprefix('--data')}" if a == "--data" or a.startswith("--data=") else a for a in argv]
    argv = ["--engine.profile" if a == "--profile" else a for a in argv]
    argv = [f"--train.{a[2:]}" if a.split("=")[0] == "--init-from" else a for a in argv]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    first.add_argument("--out", nargs="?", type=Path)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--train.init-from", nargs="?", dest="init_from")
    first.add_argument("--model.image-size", nargs="?", type=int, dest="image_size")
    given = from_home(first.parse_known_args(argv)[0])
    name = given.preset or "demo"
    config = preset(name)
    if given.resume and given.preset is None and not HELP.intersection(argv):
        config = choose_directory(given.out, name, resume=True).saved_config(config)
    elif given.init_from and not HELP.intersection(argv):
        from fastt2i.engine.initial_model import settings_from  # imports torch

        config = settings_from(
            given.init_from, config, given.image_size or (config.model.image_size if given.preset else None)
        )
    default = Arguments(preset=name, config=config)
    return from_home(tyro.cli(Arguments, args=argv, default=default, description=DESCRIPTION, prog="fastt2i train"))


def _summary(prompt: str, directory: RunDirectory, seconds: float) -> str:
    """The last lines of a run, with commands that work as printed in the current directory."""
    python, out, quote = python_command(), directory.path, shlex.quote
    lines = [
        f"done in {int(seconds) // 60}:{int(seconds) % 60:02d}",
        f"  samples  {directory.samples}/",
        f"  curves   {directory.curves}",
        f"  metrics  {directory.metrics}",
        f"  model    {directory.model}/",
    ]
    if directory.tensorboard.is_dir():
        lines.append(f"  tensorboard  {python} -m tensorboard.main --logdir {quote(str(directory.tensorboard))}")
    command = f"{python} -m fastt2i.generate --model {quote(str(out))} --prompt {quote(prompt)} --num 4"
    return "\n".join([*lines, "try next:", f"  {command} --out {quote(str(out / 'generated.png'))}"])


if __name__ == "__main__":
    sys.exit(run(main))
