"""What is drawn to score a model."""

from __future__ import annotations

import numpy as np
import torch

from fastt2i.data.dataset import Dataset
from fastt2i.engine.scoring.plan import DF_GAN_CUT, DF_GAN_TRUNCATION, make_plan

CAPTIONS = [("a", "b"), ("c",), ("d", "e", "f")]


def dataset(captions: list[tuple[str, ...]] = CAPTIONS) -> Dataset:
    return Dataset(
        name="x",
        keys=[str(n) for n in range(len(captions))],
        captions=captions,
        read=lambda _: b"",
        classes=np.arange(len(captions)) % 2,
    )


def test_captions_go_round_the_samples() -> None:
    plan = make_plan(dataset(), images=8, seed=0)
    assert plan.captions == ["a", "c", "d", "b", "c", "e", "a", "c"]
    assert plan.places.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert plan.classes is not None and plan.classes.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert plan.rounded and len(make_plan(dataset(), images=None, seed=0)) == 3


def test_an_images_noise_is_its_own() -> None:
    """Whatever is drawn beside it, and however many there are."""
    plan, larger = (make_plan(dataset(), images=count, seed=3, truncation=0.5) for count in (5, 300))
    noise = larger.noise(range(300), 64)
    assert torch.equal(plan.noise(range(2, 5), 64), noise[2:5])
    assert abs(float(noise.std()) - 0.5) < 0.01 and abs(float(noise.mean())) < 0.01
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(make_plan(dataset(), images=5, seed=4).noise(range(5), 64), noise[:5])


def test_df_gan_draws_30_000_images_with_noise_that_is_cut() -> None:
    plan = make_plan(dataset([(f"{n} x", f"{n} y") for n in range(2933)]), protocol="df-gan", images=None, seed=0)
    assert len(plan) == 29_330 and not plan.rounded and plan.truncation == DF_GAN_TRUNCATION
    assert all(text.split()[0] == str(n % 2933) for n, text in enumerate(plan.captions))
    second = sum(text.endswith("y") for text in plan.captions)
    assert 0.48 < second / len(plan) < 0.52
    noise = plan.noise(range(400), 64)
    assert float(noise.abs().max()) <= DF_GAN_CUT * DF_GAN_TRUNCATION
    assert abs(float(noise.std()) - 0.8796 * DF_GAN_TRUNCATION) < 0.01  # of a normal distribution cut at 2
