"""Replacements for undecodable images, and when there are too many of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.data.dataset import CaptionTable, Dataset, Problem
from fastt2i.data.loaders.quarantine import Quarantine, Tally, TooManyBad, replace_undecodable
from fastt2i.data.sampler import Plan, Sampler
from fastt2i.errors import UserError


def sampler_of(count: int, batch_size: int, seed: int = 0) -> Sampler:
    """Sample i has the captions 2i and 2i + 1."""
    table = CaptionTable([str(i) for i in range(2 * count)], np.arange(count + 1) * 2, np.arange(2 * count))
    return Sampler(table, batch_size=batch_size, seed=seed, flip=True)


@given(
    count=st.integers(2, 40),
    batch_size=st.integers(1, 24),
    bad=st.sets(st.integers(0, 39), max_size=39),
    step=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_captions_stay_with_their_images(count: int, batch_size: int, bad: set[int], step: int, seed: int) -> None:
    bad = {sample for sample in bad if sample < count - 1}
    sampler = sampler_of(count, batch_size, seed)
    plan = sampler.plan(step)
    replaced = replace_undecodable(plan, sampler.positions(step), sampler, count, lambda sample: sample not in bad)
    assert not bad & set(replaced.samples.tolist())
    np.testing.assert_array_equal(replaced.caption_ids // 2, replaced.samples)
    good = ~np.isin(plan.samples, list(bad))
    for before, after in zip(plan, replaced, strict=True):
        np.testing.assert_array_equal(before[good], after[good])
    assert not (replaced.mismatched_ids // 2 == replaced.samples)[~good].any()
    again = replace_undecodable(plan, sampler.positions(step), sampler, count, lambda sample: sample not in bad)
    np.testing.assert_array_equal(again.samples, replaced.samples)


@given(
    count=st.integers(2, 40),
    share=st.integers(1, 20),
    ranks=st.sampled_from([2, 3, 4]),
    kinds=st.integers(1, 6),
    bad=st.sets(st.integers(0, 39), min_size=1, max_size=39),
    step=st.integers(0, 50),
)
def test_ranks_together_are_one_process(
    count: int, share: int, ranks: int, kinds: int, bad: set[int], step: int
) -> None:
    """Also where samples share captions, and a replacement's own is the one that it should be told from."""
    bad = {sample for sample in bad if sample < count - 1}
    table = CaptionTable([str(kind) for kind in range(kinds)], np.arange(count + 1), np.arange(count) % kinds)

    def replaced(rank: int, world_size: int) -> Plan:
        settings = {"batch_size": share * ranks, "seed": 1, "flip": True}
        sampler = Sampler(table, rank=rank, world_size=world_size, **settings)
        return replace_undecodable(
            sampler.plan(step), sampler.positions(step), sampler, count, lambda sample: sample not in bad
        )

    whole, parts = replaced(0, 1), [replaced(rank, ranks) for rank in range(ranks)]
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), expected)


def test_replacements_are_spread_over_the_set() -> None:
    sampler = sampler_of(1000, 1000)
    bad = set(range(0, 1000, 2))
    replaced = replace_undecodable(
        sampler.plan(0), sampler.positions(0), sampler, 1000, lambda sample: sample not in bad
    )
    assert np.bincount(replaced.samples).max() < 10


def test_the_only_good_one_is_found() -> None:
    sampler = sampler_of(997, 4)
    replaced = replace_undecodable(sampler.plan(0), sampler.positions(0), sampler, 997, lambda sample: sample == 500)
    assert set(replaced.samples.tolist()) == {500}


def test_a_search_ends() -> None:
    sampler = sampler_of(5000, 4)
    with pytest.raises(UserError, match="1000 images, one after the other, cannot be decoded"):
        replace_undecodable(sampler.plan(0), sampler.positions(0), sampler, 5000, lambda sample: False)


def quarantine_of(
    count: int, max_bad_fraction: float, known: tuple[Problem, ...] = (), *, shared: bool = False
) -> Quarantine:
    keys = [f"{i}.png" for i in range(count)]
    dataset = Dataset(name="folder", keys=keys, captions=[("x",)] * count, read=lambda i: b"")
    return Quarantine(dataset, max_bad_fraction, known, shared=shared)


def fail(*samples: int) -> list[tuple[int, str]]:
    return [(sample, "damaged") for sample in samples]


def test_each_is_listed_once() -> None:
    quarantine = quarantine_of(1000, 0.05)
    quarantine.note(np.arange(40), fail(3, 5))
    quarantine.note(np.arange(40), fail(5, 7))
    assert [problem.where for problem in quarantine.problems] == ["3.png", "5.png", "7.png"]


def test_what_an_earlier_part_of_the_run_found_is_kept_and_counts() -> None:
    known = tuple(Problem(f"{number}.png", "damaged") for number in range(48))
    quarantine = quarantine_of(1000, 0.05, known)
    quarantine.note(np.arange(30), [])  # few are tried again so far: no reason to stop
    quarantine.note(np.arange(500), fail(3, 48, 49))
    assert [problem.where for problem in quarantine.problems] == [f"{number}.png" for number in range(50)]
    with pytest.raises(UserError, match="51 of 500 images of folder cannot be decoded"):
        quarantine.note(np.arange(500), fail(50))


@pytest.mark.parametrize(("count", "bad"), [(2, 1), (11, 1), (20, 1), (40, 2), (1000, 50), (10_000, 500)])
def test_up_to_the_fraction_is_fine_and_one_always_is(count: int, bad: int) -> None:
    quarantine_of(count, 0.05).note(np.arange(count), fail(*range(bad)))


@pytest.mark.parametrize(("count", "bad"), [(3, 2), (20, 2), (40, 3), (1000, 51), (10_000, 501)])
def test_more_than_the_fraction_is_not(count: int, bad: int) -> None:
    message = f"{bad} of {count} images of folder cannot be decoded, more than the fraction 0.05 .*: damaged"
    with pytest.raises(UserError, match=message):
        quarantine_of(count, 0.05).note(np.arange(count), fail(*range(bad)))


def test_a_set_that_is_plainly_bad_is_noticed_early() -> None:
    quarantine = quarantine_of(1_000_000, 0.05)
    with pytest.raises(UserError, match="32 of 64 images"):
        quarantine.note(np.arange(64), fail(*range(32)))


@pytest.mark.parametrize("seed", range(5))
def test_chance_does_not_end_a_run(seed: int) -> None:
    """3 % of bad images, allowed 5 %, as they come."""
    count = 10_000
    order = np.random.default_rng(seed).permutation(count)
    quarantine = quarantine_of(count, 0.05)
    for start in range(0, count, 32):
        samples = order[start : start + 32]
        quarantine.note(samples, fail(*samples[samples < 0.03 * count].tolist()))
    assert len(quarantine.problems) == 300


def test_no_bad_image_may_be_allowed_and_all_but_one_too() -> None:
    with pytest.raises(UserError, match="1 of 32 images"):
        quarantine_of(1000, 0).note(np.arange(32), fail(4))
    quarantine_of(30, 1).note(np.arange(30), fail(*range(29)))
    with pytest.raises(UserError, match="none of the 30 images of folder can be decoded; the first is 0.png: damaged"):
        quarantine_of(30, 1).note(np.arange(30), fail(*range(30)))


def test_ranks_are_judged_together() -> None:
    """Each alone has no more bad images than are allowed; both together have."""
    ranks = [quarantine_of(40, 0.05, shared=True) for _ in range(2)]
    ranks[0].note(np.arange(20), fail(3, 4))
    ranks[1].note(np.arange(20, 40), fail(30))
    assert [rank.tally for rank in ranks] == [Tally(20, 2), Tally(20, 1)]
    for rank in ranks:
        rank.judge(rank.problems, [rank.tally])
        with pytest.raises(TooManyBad, match="3 of 40 images of folder") as caught:
            rank.judge([*ranks[0].problems, *ranks[1].problems], [rank.tally for rank in ranks])
        assert [problem.where for problem in caught.value.problems] == ["3.png", "4.png", "30.png"]


def test_ranks_that_have_tried_the_same_images_do_not_count_them_twice() -> None:
    quarantine = quarantine_of(1000, 0.05)
    problems = [Problem(f"{number}.png", "damaged") for number in range(50)]
    quarantine.judge(problems, [Tally(1000, 50)] * 4)
    quarantine.judge(problems[:2], [Tally(40, 2)] * 8)


def test_a_quarantine_that_is_shared_leaves_it_to_others_to_judge() -> None:
    quarantine = quarantine_of(100, 0, shared=True)
    quarantine.note(np.arange(100), fail(*range(99)))
    assert len(quarantine.problems) == 99
