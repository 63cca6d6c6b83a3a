"""How much images of one caption differ, generated and real."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastt2i.data.dataset import Dataset
from fastt2i.data.sources.shapes import shapes_dataset
from fastt2i.metrics.spread import pair_distance, real_distance, spread


def test_spread_is_the_standard_deviation_in_levels() -> None:
    images = torch.randn(3, 8, 3, 4, 4, dtype=torch.float64)
    expected = np.std(images.numpy(), axis=1).mean() * 127.5
    assert spread(images) == pytest.approx(expected, rel=1e-5)
    assert spread(images[:, :1].expand(-1, 8, -1, -1, -1)) == 0


def test_pair_distance_is_the_mean_over_all_pairs() -> None:
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    pairs = [(images[i] - images[j]).abs().mean() for i in range(4) for j in range(i)]
    assert pair_distance(images) == pytest.approx(float(sum(pairs)) / 6)


def test_pair_distance_does_not_depend_on_the_number_of_images() -> None:
    """In expectation; the standard error over 400 groups is below 1 %."""
    random = torch.Generator().manual_seed(0)
    few, many = (
        np.mean([pair_distance(torch.randn(count, 3, 4, 4, generator=random)) for _ in range(400)]) for count in (2, 8)
    )
    assert few == pytest.approx(many, rel=0.03)


def flat_images(levels: list[int], captions: list[tuple[str, ...]], classes: list[int] | None = None) -> Dataset:
    """Images of one level each; a level below 0 stands for a file that is no image."""

    def read(sample: int) -> bytes:
        if levels[sample] < 0:
            return b"no image"
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (levels[sample],) * 3).save(file, "PNG")
        return file.getvalue()

    return Dataset(
        name="flat",
        keys=[str(number) for number in range(len(levels))],
        captions=captions,
        read=read,
        classes=None if classes is None else np.array(classes),
    )


def test_real_images_of_one_caption() -> None:
    captions = [("a", "x"), ("a",), ("b",), ("b",), ("b",)]
    dataset = flat_images([10, 40, 100, 103, -1], captions)
    distance = real_distance(dataset, 8)
    assert distance is not None and distance * 127.5 == pytest.approx((30 + 3) / 2, rel=1e-4)


def test_classes_serve_where_captions_have_one_image_each() -> None:
    captions = [(name,) for name in "abcd"]
    assert real_distance(flat_images([0, 10, 100, 150], captions), 8) is None
    distance = real_distance(flat_images([0, 10, 100, 150], captions, [5, 5, 2, 2]), 8)
    assert distance is not None and distance * 127.5 == pytest.approx((10 + 50) / 2, rel=1e-4)


def test_a_few_shared_captions_say_nothing_of_the_others() -> None:
    captions = [(name,) for name in "aabcdef"]
    assert real_distance(flat_images([0, 90, 1, 2, 3, 4, 5], captions), 8) is None


def test_images_that_are_the_same_have_no_distance() -> None:
    assert real_distance(flat_images([7, 7], [("a",), ("a",)]), 8) is None


def test_the_shapes_have_the_distance_of_their_renderings() -> None:
    """Measured once by drawing: 64 px renderings of one combination differ by 7 levels, give or take one."""
    distance = real_distance(shapes_dataset(64), 64)
    assert distance is not None and 4 < distance * 127.5 < 10
    assert distance == real_distance(shapes_dataset(64), 64)
