"""The embedded set: what is drawn, what is said about it, and what is held out."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastt2i.data import shapes


def test_there_are_1280_combinations() -> None:
    assert len(set(shapes.combinations())) == 8 * 4 * 2 * 5 * 4 == 1280


def test_colors_and_backgrounds_are_far_apart() -> None:
    named = [*shapes.COLORS.values(), *shapes.BACKGROUNDS.values()]
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(named, 2)) >= 90


def test_a_tenth_is_held_out_in_balance() -> None:
    heldout = shapes.heldout_combinations()
    assert len(heldout) == 128 and heldout < set(shapes.combinations())
    for field, values in enumerate((8, 4, 2, 5, 4)):
        counts = Counter(attributes[field] for attributes in heldout)
        assert len(counts) == values
        assert max(counts.values()) - min(counts.values()) <= 2


def test_the_held_out_combinations_never_change() -> None:
    """Models of different releases are compared on them."""
    text = "\n".join(" ".join(attributes) for attributes in sorted(shapes.heldout_combinations()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4cc84d3664ae3893"


@given(
    combination=st.integers(0, 1279),
    image_size=st.sampled_from([32, 33, 64, 100]),
    seed=st.integers(0, 2**32),
)
@example(combination=584, image_size=32, seed=75)
def test_render(combination: int, image_size: int, seed: int) -> None:
    attributes = shapes.combinations()[combination]
    image = shapes.render(attributes, image_size, np.random.default_rng(seed))
    assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, shapes.render(attributes, image_size, np.random.default_rng(seed)))
    background = image[0, 0].astype(float)
    assert np.abs(background - shapes.BACKGROUNDS[attributes.background]).max() <= shapes.BACKGROUND_JITTER + 1
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    # A corner of a large triangle or cross may reach into the outermost pixels, but nothing is cut off.
    reached = np.abs(border - background).sum(1) / np.abs(shapes.COLORS[attributes.color] - background).sum()
    assert reached.max() <= 0.75 and (reached > 0).sum() <= 16, "the object is cut by the edge"
    difference = np.abs(image - background).sum(2)
    x, y = shapes.POSITIONS[attributes.position]
    inside = image[np.unravel_index(difference.argmax(), difference.shape)].astype(float)
    assert np.abs(inside - shapes.COLORS[attributes.color]).max() <= shapes.COLOR_JITTER + 1
    weights = difference / difference.sum()
    grid = (np.arange(image_size) + 0.5) / image_size
    centroid = (weights.sum(0) @ grid, weights.sum(1) @ grid)
    assert np.abs(np.subtract(centroid, (x, y))).max() <= shapes.POSITION_JITTER + 0.5 / image_size


def test_jitter_reaches_its_bounds_and_differs() -> None:
    attributes = shapes.combinations()[0]
    rng = np.random.default_rng(0)
    images = [shapes.render(attributes, 32, rng).tobytes() for _ in range(50)]
    assert len(set(images)) == 50


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_coverage_is_antialiased_and_centred_on_the_centroid(shape: str) -> None:
    grid = np.arange(200) + 0.5
    alpha = shapes.coverage(shape, grid - 100.3, grid[:, None] - 99.6, 40.0)
    assert 0 < ((alpha > 0) & (alpha < 1)).mean() < 0.03
    assert alpha.sum(0) @ grid / alpha.sum() == pytest.approx(100.3, abs=0.1)
    assert alpha.sum(1) @ grid / alpha.sum() == pytest.approx(99.6, abs=0.1)


def test_the_area_of_a_circle() -> None:
    grid = np.arange(100) + 0.5
    assert shapes.coverage("circle", grid - 50, grid[:, None] - 50, 30.0).sum() == pytest.approx(np.pi * 900, rel=1e-3)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="'star'.*circle"):
        shapes.coverage("star", np.zeros(1), np.zeros(1), 1.0)


def test_every_caption_parses_back() -> None:
    for attributes in shapes.combinations():
        captions = {shapes.caption(attributes, phrasing) for phrasing in range(shapes.PHRASINGS)}
        assert len(captions) == shapes.PHRASINGS >= 8
        for caption in captions:
            assert shapes.parse_caption(caption) == attributes


def test_no_caption_serves_two_combinations() -> None:
    said = Counter(shapes.caption(a, p) for a in shapes.combinations() for p in range(shapes.PHRASINGS))
    assert set(said.values()) == {1}


def test_articles() -> None:
    captions = [shapes.caption(shapes.Attributes("orange", "cross", "large", "center", "gray"), p) for p in range(40)]
    assert any("an orange" in caption for caption in captions)
    assert not any("a orange" in caption for caption in captions)


def test_parsing_forgives_case_spaces_and_a_full_stop() -> None:
    expected = shapes.Attributes("cyan", "circle", "small", "top left", "gray")
    assert shapes.parse_caption("  A small  Cyan circle at the top left\non a gray background.") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a bird with a red head",
        "a small cyan circle",
        "a small cyan circle at the top left on a gray background and a dog",
        "a small cyan star at the top left on a gray background",
        "ein kleiner roter Kreis",
    ],
)
def test_other_texts_do_not_parse(text: str) -> None:
    assert shapes.parse_caption(text) is None
