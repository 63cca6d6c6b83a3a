"""Undecodable images: deterministic substitutes for them, and when there are too many to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.dataset import FEWEST_IMAGES, Dataset, Problem
from fastt2i.data.hashing import hash64
from fastt2i.data.sampler import Plan, Sampler
from fastt2i.errors import UserError

_MOST_TRIES = 1000  # replacements tried for one position


def replace_undecodable(
    plan: Plan, positions: NDArray[np.int64], sampler: Sampler, count: int, usable: Callable[[int], bool]
) -> Plan:
    """Replace the samples of a plan that are not usable, images and captions together.

    count: samples in the dataset. The position's flip and corner stay.
    Raises UserError where no replacement is found.
    """
    samples = [
        sample if usable(sample) else replacement(position, count, usable)
        for sample, position in zip(plan.samples.tolist(), positions.tolist(), strict=True)
    ]
    return with_samples(plan, np.array(samples, dtype=np.int64), positions, sampler)


def replacement(position: int, count: int, usable: Callable[[int], bool]) -> int:
    """The sample that takes the place of one that is not usable.

    It is a fixed function of the position and of which samples are usable, so that every loader, and the same one
    after a resume, takes the same.
    Raises UserError: none is found.
    """
    found = next((sample for sample in _candidates(position, count) if usable(sample)), None)
    if found is None:
        raise UserError(f"{min(count, _MOST_TRIES)} images, one after the other, cannot be decoded")
    return found


def with_samples(plan: Plan, samples: NDArray[np.int64], positions: NDArray[np.int64], sampler: Sampler) -> Plan:
    """The plan with these samples (B,), and with captions for them where they are other ones.

    What changes is a function of the position and its sample: it is the same however many ranks share the step.
    """
    replaced = samples != plan.samples
    if not replaced.any():
        return plan
    captions, mismatched = plan.caption_ids.copy(), plan.mismatched_ids.copy()
    captions[replaced] = sampler.captions(positions[replaced], samples[replaced])
    # A replacement may bring along the very caption that should not fit it.
    mismatched[replaced] = sampler.mismatched(positions[replaced], samples[replaced])
    return plan._replace(samples=samples, caption_ids=captions, mismatched_ids=mismatched)


def _candidates(position: int, count: int) -> Iterator[int]:
    """A walk over all samples, each once, that starts and strides by a hash of the position."""
    start, stride = (int(hash64(position, salt)) % count for salt in (1, 2))
    while math.gcd(stride, count) != 1:
        stride += 1
    return ((start + k * stride) % count for k in range(min(count, _MOST_TRIES)))


class TooManyBad(UserError):
    """So many images cannot be decoded that the run ends; `problems` are all that are known."""

    def __init__(self, sentence: str, problems: Sequence[Problem]) -> None:
        super().__init__(sentence)
        self.problems = problems


class Tally(NamedTuple):
    """How many different images were tried, and how many of these are bad."""

    tried: int
    bad: int


class Quarantine:
    """The undecodable images of a dataset, each once with its reason, and the judgement when they are too many.

    The run ends once they are more than `max_bad_fraction` of all images (of 20, where there are fewer), or so many
    among those tried so far that chance does not explain it (five standard deviations and three images above).
    """

    def __init__(
        self, dataset: Dataset, max_bad_fraction: float, known: Iterable[Problem] = (), *, shared: bool = False
    ) -> None:
        """known: what an earlier part of the run found. shared: other ranks try other images, so that `note` leaves it
        to somebody who knows of all to `judge`.
        """
        self.problems = list(known)
        self._listed = {problem.where for problem in self.problems}
        self._dataset = dataset
        self._fraction = max_bad_fraction
        self._shared = shared
        self._tried = np.zeros(len(dataset), dtype=bool)
        self._bad: set[int] = set()

    def note(self, tried: NDArray[np.int64], failures: Iterable[tuple[int, str]]) -> None:
        """Enter samples that were tried, and those of them that failed, with reasons. Raises TooManyBad."""
        self._tried[tried] = True
        for sample, reason in failures:
            self._tried[sample] = True
            if sample not in self._bad:
                self._bad.add(sample)
                if (key := self._dataset.keys[sample]) not in self._listed:
                    self._listed.add(key)
                    self.problems.append(Problem(key, reason))
        if not self._shared:
            self.judge(self.problems, [self.tally])

    @property
    def tally(self) -> Tally:
        """Of this part of the run."""
        return Tally(int(self._tried.sum()), len(self._bad))

    def judge(self, problems: Sequence[Problem], tallies: Sequence[Tally]) -> None:
        """Raise TooManyBad if the images that all ranks have found are too many.

        problems: theirs, each image once. tallies: of each rank. Ranks try different images until an epoch ends, and
        after that no more than there are.
        """
        total = len(self._dataset)
        tried = min(sum(tally.tried for tally in tallies), total)
        bad = min(sum(tally.bad for tally in tallies), len(problems))
        if not bad:
            return
        first = f"the first is {problems[0].where}: {problems[0].what}"
        if bad == total:
            raise TooManyBad(f"none of the {total} images of {self._dataset.name} can be decoded; {first}", problems)
        by_chance = self._fraction * tried + 5 * math.sqrt(self._fraction * (1 - self._fraction) * tried) + 3
        if len(problems) > self._fraction * max(total, FEWEST_IMAGES):
            bad, tried = len(problems), max(tried, len(problems))
        elif tried < FEWEST_IMAGES or bad <= by_chance:
            return
        raise TooManyBad(
            f"{bad} of {tried} images of {self._dataset.name} cannot be decoded, more than the fraction "
            f"{self._fraction:g} that data.max_bad_fraction allows; {first}",
            problems,
        )
