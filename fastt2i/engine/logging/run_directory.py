"""Where a run keeps what it makes."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastt2i.config import Config
from fastt2i.data.dataset import Problem
from fastt2i.data.sources.helpers.folder_files import is_image
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file
from fastt2i.files.lock import DirectoryInUse, claim_directory


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.quarantine = path / "quarantine.jsonl"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.evaluation = path / "evaluation"

    def exists(self) -> bool:
        """Whether a run was started here: its settings are, or checkpoints that a new one would go on with."""
        return self.config.is_file() or any(self.checkpoints.glob("step-*"))

    def prepare(self) -> None:
        """Make the folders; done first, so that a run does not find out late that it cannot be kept.

        Raises:
            UserError: the folder cannot be written.
        """
        with self.write_errors():
            for directory in (self.path, self.checkpoints, self.samples):
                directory.mkdir(parents=True, exist_ok=True)
            replace_file(self.path / ".writable", b"")
            (self.path / ".writable").unlink()

    @contextmanager
    def write_errors(self) -> Iterator[None]:
        """An OSError in this block becomes a UserError that asks for another folder."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to the output folder {self.path}: {error.strerror}; choose another --out"
            ) from error

    def note(self, config: Config) -> None:
        """Keep the resolved configuration: from now on there is a run here."""
        replace_file(self.config, config.to_yaml().encode())

    def saved_config(self, default: Config) -> Config:
        """The configuration of the run that was started here, or `default` if none was.

        Raises:
            UserError: its file cannot be read, or is no configuration.
        """
        if not self.config.is_file():
            return default
        try:
            return Config.from_yaml(self.config.read_text("utf-8"), str(self.config))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} cannot be read: {error}") from error

    def records(self) -> Iterator[dict[str, float]]:
        """The lines of `metrics.jsonl`; those that are damaged, as one that was cut off, are left out."""
        if self.metrics.is_file():
            for line in self.metrics.read_text("utf-8", "replace").splitlines():
                if (record := _record(line)) is not None:
                    yield record

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: the steps that follow will be logged again."""
        kept = [json.dumps(record) for record in self.records() if record["step"] <= step]
        replace_file(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def write_quarantine(self, problems: Sequence[Problem]) -> None:
        """Note what was left out and why, a line of JSON each."""
        lines = "".join(json.dumps({"where": p.where, "what": p.what}, ensure_ascii=False) + "\n" for p in problems)
        replace_file(self.quarantine, lines.encode("utf-8", "backslashreplace"))


def _record(line: str) -> dict[str, float] | None:
    """A line of `metrics.jsonl`: numbers by name, with the number of the step; None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values())
    return record if numbers and "step" in record else None


@contextmanager
def claimed_directory(out: Path | None, preset: str, resume: bool) -> Iterator[RunDirectory]:
    """The directory that `choose_directory` gives, made and held for the length of the block.

    Of new runs that start at once without `out`, each takes a name of its own.

    Raises:
        UserError: as `choose_directory`; it cannot be written, or another process is at the run in it.
    """
    in_use: set[Path] = set()
    with ExitStack() as stack:
        while True:
            run = choose_directory(out, preset, resume, in_use)
            try:
                with run.write_errors():
                    run.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(claim_directory(run.path))
            except DirectoryInUse as error:
                if out is None and not resume:
                    in_use.add(run.path)
                    continue
                raise UserError(f"{error}: wait until that has ended, or choose another --out") from error
            if resume or not run.exists():
                break
            stack.close()  # another process has taken the name since, and ended
        run.prepare()
        yield run


def refuse_folder_of_images(out: Path | None, data: str) -> None:
    """Raise UserError where a new run would be put among images, which one that is resumed could not tell from its own.

    out: as of `choose_directory`; data: the path of the data.
    """
    if out is None or not out.is_dir() or RunDirectory(out).exists():
        return
    if any(map(is_image, os.listdir(out))) or (os.path.exists(data) and os.path.samefile(out, data)):
        raise UserError(f"the output folder {out} holds images that are not a run's; choose another --out")


def choose_directory(
    out: Path | None, preset: str, resume: bool, in_use: Container[Path] = frozenset()
) -> RunDirectory:
    """The directory of a new run, or of the one to go on with.

    Without `out` it is `runs/<preset>`, with a number behind it where that is taken or in use; to resume, the newest of
    these.

    Raises:
        UserError: a new run would write over an old one, or there is none to go on with.
    """
    if out is None:
        return _newest_run(preset) if resume else _free_directory(preset, in_use)
    run = RunDirectory(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"the output folder {out} is a file; choose another --out")
    if run.exists() and not resume:
        raise UserError(f"{out} already holds a run; go on with it by --resume, or choose another --out")
    return run


def _newest_run(preset: str) -> RunDirectory:
    ours = re.compile(re.escape(preset) + r"(-\d+)?")
    runs = [RunDirectory(path) for path in Path("runs").glob("*") if ours.fullmatch(path.name)]
    runs = [run for run in runs if run.config.is_file()]
    if not runs:
        raise UserError(f"there is no run to resume at runs/{preset}; name its folder with --out")
    return max(runs, key=lambda run: run.config.stat().st_mtime)


def _free_directory(preset: str, in_use: Container[Path]) -> RunDirectory:
    names = itertools.chain([preset], (f"{preset}-{number}" for number in itertools.count(2)))
    runs = (RunDirectory(Path("runs", name)) for name in names)
    return next(run for run in runs if not run.exists() and run.path not in in_use)
