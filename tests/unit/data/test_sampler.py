"""Plans are pure functions of (seed, epoch, rank, step)."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.data.dataset import CaptionTable
from fastt2i.data.sampler import Plan, Sampler


def table_of(count: int, captions: int = 2, shared: int = 0) -> CaptionTable:
    """`captions` own captions a sample; `shared` more that all samples have."""
    own = np.arange(count * captions).reshape(count, captions) + shared
    ids = np.concatenate([own, np.broadcast_to(np.arange(shared), (count, shared))], axis=1)
    names = [str(i) for i in range(count * captions + shared)]
    return CaptionTable(names, np.arange(count + 1) * (captions + shared), ids.ravel())


def assert_same(a: Plan, b: Plan) -> None:
    for part, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(part, other)


@given(
    count=st.integers(1, 50),
    per_rank=st.integers(1, 9),
    world_size=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**63 - 1),
    steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
)
def test_ranks_make_up_the_plan_of_one_process_in_any_order_of_steps(
    count: int, per_rank: int, world_size: int, seed: int, steps: list[int]
) -> None:
    options = {"batch_size": per_rank * world_size, "seed": seed, "flip": True, "margin": 12}
    table = table_of(count)
    whole = Sampler(table, **options)
    ranks = [Sampler(table, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for step in steps:
        expected = Sampler(table, **options).plan(step)
        assert_same(whole.plan(step), expected)
        parts = [rank.plan(step) for rank in ranks]
        assert_same(Plan(*(np.concatenate(part) for part in zip(*parts, strict=True))), expected)
        assert [len(part) for part in parts[0]] == [per_rank] * 5
        positions = np.concatenate([rank.positions(step) for rank in ranks])
        np.testing.assert_array_equal(positions, step * per_rank * world_size + np.arange(per_rank * world_size))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(count: int, batch_size: int, seed: int) -> None:
    sampler = Sampler(table_of(count), batch_size=batch_size, seed=seed, flip=False)
    epochs = 3
    steps = -(-epochs * count // batch_size)
    order = np.concatenate([sampler.plan(step).samples for step in range(steps)])[: epochs * count]
    for epoch in order.reshape(epochs, count):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_epochs_and_seeds_differ() -> None:
    orders = [Sampler(table_of(64), batch_size=64, seed=s, flip=False).plan(e).samples for s in (0, 1) for e in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4


def test_the_order_never_changes() -> None:
    """Runs are resumed by later releases."""
    plan = Sampler(table_of(10, captions=3), batch_size=6, seed=1, flip=True).plan(3)
    assert plan.samples.tolist() == PINNED["samples"]
    assert plan.caption_ids.tolist() == PINNED["caption_ids"]
    assert plan.mismatched_ids.tolist() == PINNED["mismatched_ids"]
    assert plan.flips.tolist() == PINNED["flips"]


PINNED = {
    "samples": [7, 1, 1, 4, 5, 3],
    "caption_ids": [23, 3, 3, 14, 17, 11],
    "mismatched_ids": [3, 14, 14, 17, 11, 23],
    "flips": [True, True, True, False, False, True],
}


def test_captions_are_the_samples_own_and_evenly_chosen() -> None:
    sampler = Sampler(table_of(100, captions=4), batch_size=100, seed=0, flip=False)
    plans = [sampler.plan(step) for step in range(100)]
    choices = np.concatenate([plan.caption_ids - 4 * plan.samples for plan in plans])
    assert choices.min() == 0 and choices.max() == 3
    assert np.abs(np.bincount(choices) / len(choices) - 0.25).max() < 0.02
    changed = plans[0].caption_ids[np.argsort(plans[0].samples)] != plans[1].caption_ids[np.argsort(plans[1].samples)]
    assert 0.5 < changed.mean() < 0.95, "an epoch draws anew"


def test_uneven_numbers_of_captions() -> None:
    table = CaptionTable(list("abcd"), np.array([0, 1, 4]), np.array([0, 1, 2, 3]))
    sampler = Sampler(table, batch_size=2, seed=0, flip=False)
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for step in range(50):
        for sample, caption in zip(*sampler.plan(step)[:2], strict=True):
            seen[int(sample)].add(int(caption))
    assert seen == {0: {0}, 1: {1, 2, 3}}


def test_flips() -> None:
    flips = [Sampler(table_of(500), batch_size=500, seed=0, flip=flip).plan(0).flips for flip in (True, False)]
    assert 0.4 < flips[0].mean() < 0.6 and not flips[1].any()
    assert flips[0].dtype == flips[1].dtype == np.bool_


def test_corners_are_all_that_the_margin_allows_and_alike_likely() -> None:
    corners = Sampler(table_of(500), batch_size=500, seed=0, flip=False, margin=2).plan(0).corners
    assert corners.shape == (500, 2) and corners.dtype == np.int64
    counts = np.bincount(corners[:, 0] * 3 + corners[:, 1], minlength=9)
    assert len(counts) == 9 and counts.min() > 30 and counts.max() < 85  # 56 expected, 7 is a standard deviation
    assert not Sampler(table_of(500), batch_size=500, seed=0, flip=False).plan(0).corners.any()


def test_the_mismatched_caption_is_the_next_ones() -> None:
    plan = Sampler(table_of(32, captions=1), batch_size=16, seed=0, flip=False).plan(0)
    np.testing.assert_array_equal(plan.mismatched_ids, np.roll(plan.caption_ids, -1))


@given(count=st.integers(2, 20), batch_size=st.integers(2, 30), seed=st.integers(0, 100), step=st.integers(0, 100))
def test_the_mismatched_caption_is_not_the_samples_own(count: int, batch_size: int, seed: int, step: int) -> None:
    """Also where epochs meet in a batch, or one sample is in it twice; unless nothing else is in it."""
    plan = Sampler(table_of(count, captions=3), batch_size=batch_size, seed=seed, flip=False).plan(step)
    assert set(plan.mismatched_ids) <= set(plan.caption_ids)
    if len(set(plan.samples)) > 1:
        assert not np.any(plan.mismatched_ids // 3 == plan.samples)


def test_where_all_captions_fit_all_images_the_next_one_is_taken() -> None:
    plan = Sampler(table_of(8, captions=0, shared=3), batch_size=8, seed=0, flip=False).plan(0)
    np.testing.assert_array_equal(plan.mismatched_ids, np.roll(plan.caption_ids, -1))


def test_one_sample_fills_any_batch() -> None:
    plan = Sampler(table_of(1), batch_size=5, seed=0, flip=True).plan(7)
    assert plan.samples.tolist() == [0] * 5 and set(plan.caption_ids) <= {0, 1}


def test_it_travels_to_worker_processes() -> None:
    sampler = Sampler(table_of(10), batch_size=4, seed=0, flip=True)
    expected = sampler.plan(5)
    assert_same(pickle.loads(pickle.dumps(sampler)).plan(5), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 6, "world_size": 4}, "batch size 6 must be a positive multiple of 4"),
        ({"batch_size": 8, "world_size": 4, "rank": 4}, "rank is 4"),
    ],
)
def test_impossible_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(table_of(3), seed=0, flip=False, **options)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Sampler(table_of(0), batch_size=2, seed=0, flip=False)
