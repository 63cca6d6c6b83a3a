"""The embedded set as a dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastt2i.data.decode import decode
from fastt2i.data.shapes import heldout_combinations, parse_caption
from fastt2i.data.sources.shapes import shapes_dataset
from fastt2i.metrics.attributes import read_attributes


def test_training_never_sees_what_is_held_out() -> None:
    train, heldout = shapes_dataset(32), shapes_dataset(32, "heldout")
    assert (len(train), len(heldout)) == (4608, 128)
    seen = {parse_caption(caption) for own in train.captions for caption in own}
    kept = {parse_caption(caption) for own in heldout.captions for caption in own}
    assert kept == heldout_combinations() and not seen & kept and len(seen) == 1152
    assert not set(train.caption_table().captions) & set(heldout.caption_table().captions)


def test_captions() -> None:
    train = shapes_dataset(32)
    assert len(train.caption_table().captions) <= 3500
    for own in train.captions:
        assert len(set(own)) == 2 and len({parse_caption(caption) for caption in own}) == 1
    assert train.captions == shapes_dataset(64, seed=5).captions


def test_all_is_both() -> None:
    keys = shapes_dataset(32, "all").keys
    assert list(keys) == sorted({*shapes_dataset(32).keys, *shapes_dataset(32, "heldout").keys})
    assert len(keys) == 4736


@pytest.mark.parametrize(("image_size", "split"), [(32, "train"), (32, "heldout"), (64, "train")])
def test_images_show_what_captions_say(image_size: int, split: str) -> None:
    dataset = shapes_dataset(image_size, split, seed=3)
    samples = np.random.default_rng(0).choice(len(dataset), 100, replace=False)
    images = np.stack([decode(dataset.read(int(i)), image_size) for i in samples])
    assert read_attributes(images) == [parse_caption(dataset.captions[i][0]) for i in samples]


def test_reading_is_a_pure_function_of_seed_and_sample() -> None:
    dataset = shapes_dataset(32, seed=1)
    copy = pickle.loads(pickle.dumps(dataset.read))
    backwards = [copy(i) for i in reversed(range(8))]
    assert [dataset.read(i) for i in range(8)] == backwards[::-1]
    assert dataset.read(0) != shapes_dataset(32, seed=2).read(0)
    assert len({dataset.read(i) for i in range(4)}) == 4, "renderings of one combination differ"


def test_a_part_of_the_set_shows_the_same_as_all_of_it() -> None:
    heldout, both = shapes_dataset(32, "heldout"), shapes_dataset(32, "all")
    assert heldout.read(17) == both.read(both.keys.index(heldout.keys[17]))
