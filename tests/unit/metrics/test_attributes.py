"""Attributes read back from pixels: real images, spoilt images, and images with nothing to read."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from fastt2i.data.shapes import Attributes, combinations, render
from fastt2i.metrics.attributes import attribute_accuracy, read_attributes

NOTHING = (None,) * 5


def draw(count: int, image_size: int, seed: int) -> tuple[NDArray[np.uint8], list[Attributes]]:
    """Every combination about equally often, freshly jittered."""
    rng = np.random.default_rng(seed)
    expected = [combinations()[i % 1280] for i in rng.permutation(count)]
    return np.stack([render(attributes, image_size, rng) for attributes in expected]), expected


def blur(images: NDArray[np.floating], sigma: float) -> NDArray[np.floating]:
    """Gaussian, along both axes of (N, H, W, 3)."""
    taps = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    for axis in (1, 2):
        images = sum(tap * np.roll(images, by, axis) for tap, by in zip(taps, range(-4, 5), strict=True))
    return images


@pytest.mark.parametrize(
    ("image_size", "count"), [(32, 2000), (64, 400), (128, 200), (256, 100), (48, 200), (100, 200), (63, 200)]
)
def test_every_real_image_is_read_right(image_size: int, count: int) -> None:
    images, expected = draw(count, image_size, seed=7_000_000 + image_size)
    wrong = [(a, b) for a, b in zip(read_attributes(images), expected, strict=True) if a != b]
    assert wrong == []


@pytest.mark.parametrize("image_size", [32, 64])
def test_blurred_and_noisy_images_are_read_right(image_size: int) -> None:
    images, expected = draw(1280, image_size, seed=8_000_000 + image_size)
    rng = np.random.default_rng(9_000_000)
    spoilt = blur(images.astype(float), sigma=0.5) + rng.normal(0, 8, images.shape)
    accuracy = attribute_accuracy(np.clip(spoilt + 0.5, 0, 255).astype(np.uint8), expected)
    assert accuracy["all"] >= 0.995


def test_reading_takes_little_processor_time() -> None:
    images, _ = draw(256, 32, seed=1)
    times = []
    for _ in range(3):
        start = time.process_time()
        read_attributes(images)
        times.append(time.process_time() - start)
    assert min(times) < 1


def test_accuracy_counts_each_attribute() -> None:
    images, expected = draw(8, 32, seed=2)
    other = {"red": "blue", "blue": "red"}
    expected[0] = expected[0]._replace(color=other.get(expected[0].color, "red"))
    expected[1] = expected[1]._replace(size="small" if expected[1].size == "large" else "large")
    accuracy = attribute_accuracy(images, expected)
    assert accuracy == {"color": 7 / 8, "shape": 1, "size": 7 / 8, "position": 1, "background": 1, "all": 6 / 8}


def test_an_empty_picture_has_a_background_only() -> None:
    image = np.full((1, 32, 32, 3), 128, dtype=np.uint8)
    assert read_attributes(image) == [(None, None, None, None, "gray")]


def test_noise_and_gradients_say_nothing() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    gradient = np.broadcast_to(np.linspace(0, 255, 32)[None, :, None], (1, 32, 32, 3)).astype(np.uint8)
    assert set(read_attributes(np.concatenate([noise, gradient]))) == {NOTHING}


def test_faint_noise_is_no_object() -> None:
    noise = np.random.default_rng(4).normal(128, 8, (20, 32, 32, 3)).clip(0, 255).astype(np.uint8)
    assert set(read_attributes(noise)) == {(None, None, None, None, "gray")}


def test_clouds_are_never_read_in_full() -> None:
    rng = np.random.default_rng(5)
    clouds = blur(rng.normal(size=(100, 32, 32, 3)), sigma=2.0)
    clouds = (clouds / clouds.std() * 70 + 128).clip(0, 255).astype(np.uint8)
    assert all(None in reading for reading in read_attributes(clouds))


def test_what_is_off_the_set_is_none() -> None:
    image = np.full((3, 32, 32, 3), 14, dtype=np.uint8)
    image[0, 13:19, 13:19] = (120, 120, 60)  # a square of a colour without a name
    image[1, 13:19, 4:10] = (215, 25, 35)  # a red square half way up the left side
    image[2, 15:17, 2:30] = (215, 25, 35)  # a red bar
    color, position, shape = read_attributes(image)
    assert color == (None, "square", "small", "center", "black")
    assert position == ("red", "square", "small", None, "black")
    assert shape.shape is None


def test_two_objects_are_no_object_of_the_set() -> None:
    image = np.full((1, 32, 32, 3), 241, dtype=np.uint8)
    image[0, 6:12, 6:12] = image[0, 20:26, 20:26] = (35, 65, 225)
    assert None in read_attributes(image)[0]


def test_an_unknown_background_leaves_the_object_readable() -> None:
    image = np.full((1, 32, 32, 3), (20, 120, 120), dtype=np.uint8)
    image[0, 13:19, 13:19] = (250, 230, 40)
    assert read_attributes(image) == [("yellow", "square", "small", "center", None)]


def test_no_images() -> None:
    assert read_attributes(np.zeros((0, 32, 32, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 32, 16, 3), np.uint8)],
)
def test_other_arrays_are_refused(images: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"they must be uint8 \(N, S, S, 3\)"):
        read_attributes(images)


def test_tiny_images_and_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="8 px wide"):
        read_attributes(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    images, expected = draw(2, 32, seed=0)
    with pytest.raises(ValueError, match="2 images and 1 expectations"):
        attribute_accuracy(images, expected[:1])
    with pytest.raises(ValueError, match="0 images and 0"):
        attribute_accuracy(images[:0], [])
