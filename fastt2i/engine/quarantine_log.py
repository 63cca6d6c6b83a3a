"""The undecodable images that all ranks have found, listed in the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from fastt2i.data.dataset import Problem
from fastt2i.data.loaders.quarantine import Quarantine, TooManyBad
from fastt2i.engine.distributed.world import World
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.errors import UserError


class QuarantineLog:
    """Merges the undecodable images of all ranks and lists them with reasons in `quarantine.jsonl`.

    Args:
        directory: of the run.
        left_out: what the data set itself has left out; listed first.
        known: undecodable images that were found before this run was resumed.
        world: the processes of the run.

    Attributes:
        problems: undecodable images, each once.
    """

    def __init__(
        self, directory: RunDirectory, left_out: Sequence[Problem], known: Sequence[Problem], world: World
    ) -> None:
        self.problems = list(known)
        self._directory, self._left_out, self._world = directory, left_out, world
        self._gathered = len(self.problems)
        self._written = False

    def update(self, quarantine: Quarantine) -> None:
        """Merge what the loaders of all ranks have found, and judge it; quarantine: of this rank's loader.

        Raises:
            UserError: too many images are undecodable; raised on all ranks.
        """
        found = self._world.all_gather_object((quarantine.problems[self._gathered :], quarantine.tally))
        self._gathered = len(quarantine.problems)
        self._add(problem for problems, _ in found for problem in problems)
        try:
            quarantine.judge(self.problems, [tally for _, tally in found])
        except TooManyBad as error:
            raise self._world.as_collective_error(self._with_file(error)) from error

    @contextmanager
    def listing_on_error(self) -> Iterator[None]:
        """Where a loader itself raises `TooManyBad` in this block, list the images before the error ends the run."""
        try:
            yield
        except TooManyBad as error:
            self._add(error.problems)
            if self._world.is_first:
                raise self._with_file(error) from error
            raise

    def summary(self) -> str | None:
        """A sentence for the end of the run; None where all images could be decoded."""
        if not self.problems:
            return None
        return (
            f"{len(self.problems)} images could not be decoded, and others took their places; "
            f"{self._directory.quarantine} lists them with reasons"
        )

    def _add(self, problems: Iterable[Problem]) -> None:
        merged = {problem.where: problem for problem in self.problems}
        for problem in problems:
            merged.setdefault(problem.where, problem)
        if self._written and len(merged) == len(self.problems):
            return
        self.problems, self._written = list(merged.values()), True
        if self._world.is_first:
            self._directory.write_quarantine([*self._left_out, *self.problems])

    def _with_file(self, error: TooManyBad) -> UserError:
        return UserError(f"{error}; {self._directory.quarantine} lists them with reasons")
