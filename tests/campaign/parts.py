"""What every part of the campaign is: trials that are made one after the other, each from a seed of its own."""

from __future__ import annotations

import random
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from tests.campaign.processes import Fault


class Skipped(Exception):
    """A part cannot be tried on this machine; the message says why."""


@dataclass
class Outcome:
    """What a trial has shown."""

    tried: int
    """In the part's unit."""
    kinds: Counter[str] = field(default_factory=Counter)
    """How often what happened."""


class Part(ABC):
    """A kind of trouble.

    Attributes:
        name: what `--only` calls it.
        unit: what is counted.
        planned: how many.
        share: of the time that is given.
        failures: folder for what makes a failure again.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    planned: ClassVar[int]
    share: ClassVar[float]
    failures: Path

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Make what the trials start from in a folder.

        Raises:
            Fault: what nothing disturbs fails already.
            Skipped: this machine has not what the part needs.
        """

    @abstractmethod
    def trial(self, number: int, moments: random.Random) -> Outcome:
        """One trial; moments decides all that is random in it. Raises Fault: a promise is not kept."""

    def close(self) -> None:  # noqa: B027 (most have nothing to undo)
        """Undo what `prepare` did outside its folder."""


@dataclass
class Failure:
    """A trial in which a promise was not kept."""

    trial: int
    what: str


@dataclass
class Result:
    """What a part has tried and found."""

    part: str
    unit: str
    planned: int
    tried: int = 0
    trials: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: str = ""
    """Why nothing was tried; empty where something was."""


def run_part(
    part: Part, folder: Path, failures: Path, seed: int, seconds: float, only_trial: int | None = None
) -> Result:
    """Make trials until as many as planned are made or the time is over; or only the one with this number.

    folder: for all that it makes; failures: for what makes a failure again.
    """
    part.failures = failures
    result = Result(part.name, part.unit, part.planned)
    started = time.monotonic()
    bar = tqdm(total=part.planned, desc=part.name, unit=part.unit)
    try:
        part.prepare(folder)
        number = only_trial or 0
        while result.tried < part.planned and time.monotonic() - started < seconds:
            _try(part, number, random.Random(f"{seed} {part.name} {number}"), result)
            for failure in (failure for failure in result.failures if failure.trial == number):
                bar.write(f"{part.name}, trial {number}: {failure.what}")
            bar.n, number = result.tried, number + 1
            bar.set_postfix(failures=len(result.failures))
            if only_trial is not None:
                break
    except Skipped as skipped:
        result.skipped = str(skipped)
        bar.write(f"{part.name} is skipped: {skipped}")
    except Fault as fault:
        result.failures.append(Failure(-1, f"before the first trial: {fault}"))
    finally:
        part.close()
        bar.close()
    result.seconds = time.monotonic() - started
    return result


def _try(part: Part, number: int, moments: random.Random, result: Result) -> None:
    try:
        outcome = part.trial(number, moments)
    except Fault as fault:
        result.failures.append(Failure(number, str(fault)))
        outcome = Outcome(1)
    except Exception:  # a defect of the campaign's, or of what it runs in its own process
        result.failures.append(Failure(number, traceback.format_exc()))
        outcome = Outcome(1)
    result.trials += 1
    result.tried += outcome.tried
    for kind, count in outcome.kinds.items():
        result.kinds[kind] = result.kinds.get(kind, 0) + count
