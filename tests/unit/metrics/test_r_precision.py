"""R-precision against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastt2i.metrics.r_precision import r_precision


def test_it_counts_images_whose_caption_is_nearest() -> None:
    sentences = torch.eye(4)
    images = torch.tensor([[2.0, 1, 0, 0], [1, 2, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0.1]])
    assert r_precision(images, sentences, np.arange(4)) == 0.75


def test_ties_are_misses_and_length_does_not_count() -> None:
    sentences = torch.tensor([[1.0, 0], [0, 1]])
    images = torch.tensor([[1.0, 1], [0.0, 1e-6]])
    assert r_precision(images, sentences, np.arange(2)) == 0.5


def test_equal_captions_are_one_candidate() -> None:
    sentences = torch.tensor([[1.0, 0], [1.0, 0], [0, 1]])
    assert r_precision(sentences.clone(), sentences, np.array([7, 7, 3])) == 1.0


def test_chance_is_one_in_the_candidates() -> None:
    random = torch.Generator().manual_seed(0)
    images, sentences = (torch.randn(3000, 16, generator=random) for _ in range(2))
    assert r_precision(images, sentences, np.arange(3000), candidates=20) == pytest.approx(0.05, abs=0.015)


def test_one_caption_cannot_be_told_apart() -> None:
    with pytest.raises(ValueError, match="2 different captions or more"):
        r_precision(torch.ones(3, 2), torch.ones(3, 2), np.zeros(3))


def test_captions_of_the_own_class_are_no_candidates() -> None:
    """Each image is nearer to the other caption of its class than to its own."""
    sentences = torch.tensor([[1.0, 0.1, 0], [1, -0.1, 0], [0, 0.1, 1], [0, -0.1, 1]])
    images = sentences[[1, 0, 3, 2]]
    classes = np.array([5, 5, 9, 9])
    assert r_precision(images, sentences, np.arange(4)) == 0.0
    assert r_precision(images, sentences, np.arange(4), classes=classes) == 1.0
    # A caption that both classes have is none of the other class.
    both = np.array([0, 1, 2, 1])
    assert r_precision(images, sentences[[0, 1, 2, 1]], both, classes=classes) < 1.0
    with pytest.raises(ValueError, match="2 different classes or more"):
        r_precision(images, sentences, np.arange(4), classes=np.zeros(4, dtype=np.int64))
