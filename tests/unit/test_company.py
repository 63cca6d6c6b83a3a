"""An image and its score are the same bits whatever is drawn with them, and wherever in a batch they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastt2i import TextToImagePipeline
from fastt2i.pipeline import Drawing
from fastt2i.presets import preset
from fastt2i.request import Request
from tests.tiny_runs import write_model

WORDS = ("a", "small", "red", "circle", "on", "the", "left", "of", "an", "orange", "square", "unheard", ",")


@pytest.fixture(scope="module")
def small_pipeline(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TextToImagePipeline:
    """Of a model of 32 px with four channels and random weights."""
    return TextToImagePipeline.from_pretrained(write_model(tmp_path_factory.mktemp("model"), language_model), "cpu")


@pytest.fixture(scope="module", params=["demo", "64px"])
def pipeline(
    request: pytest.FixtureRequest, language_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TextToImagePipeline:
    """Of a model as wide as a preset's, with random weights."""
    folder = write_model(tmp_path_factory.mktemp("model"), language_model, preset(request.param).model)
    return TextToImagePipeline.from_pretrained(folder, "cpu")


@pytest.fixture(scope="module", params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    num = draw(st.integers(1, 4))
    best_of = draw(st.none() | st.integers(num + 1, num + 3))
    return Request(
        prompt=" ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))),
        num=num,
        seed=draw(st.integers(0, 99)),
        truncation=draw(st.sampled_from([0.7, 1.0])),
        best_of=best_of,
        negative_prompt=draw(st.sampled_from(["", "a blue triangle"])) if best_of else "",
    )


def drawn(pipeline: TextToImagePipeline, company: list[Request]) -> list[Drawing]:
    """As if the pipeline had read nothing before."""
    pipeline._encoded.clear()
    return pipeline.draw(company, scores=True)


def assert_company_makes_no_difference(pipeline: TextToImagePipeline, company: list[Request]) -> None:
    for request, joined in zip(company, drawn(pipeline, company), strict=True):
        [alone] = drawn(pipeline, [request])
        assert joined.numbers == alone.numbers
        assert torch.equal(joined.images, alone.images)
        assert joined.scores is not None and alone.scores is not None and torch.equal(joined.scores, alone.scores)


@given(company=st.lists(requests(), min_size=2, max_size=4))
def test_company_makes_no_difference(small_pipeline: TextToImagePipeline, threads: int, company: list[Request]) -> None:
    assert_company_makes_no_difference(small_pipeline, company)


def test_company_makes_no_difference_to_wide_models(pipeline: TextToImagePipeline, threads: int) -> None:
    company = [
        Request(prompt="a small red circle on the left of an orange square", num=4, seed=1),
        Request(prompt="a red circle", seed=2, truncation=0.7),
        Request(prompt="an orange square", num=2, best_of=5, seed=3, negative_prompt="a blue triangle"),
        Request(prompt="a", num=1, best_of=2, seed=4),
    ]
    assert_company_makes_no_difference(pipeline, company)
    assert_company_makes_no_difference(pipeline, company[1:3])


@pytest.mark.parametrize("num", [2, 3, 7, 8, 17, 40])
def test_an_image_does_not_depend_on_how_many_there_are(pipeline: TextToImagePipeline, threads: int, num: int) -> None:
    [many] = drawn(pipeline, [Request(prompt="a red circle", num=num)])
    [one] = drawn(pipeline, [Request(prompt="a red circle")])
    assert torch.equal(many.images[:1], one.images)
    assert many.scores is not None and one.scores is not None and torch.equal(many.scores[:1], one.scores)


def test_parts_of_a_request_have_the_images_of_the_whole(pipeline: TextToImagePipeline, threads: int) -> None:
    request = Request(prompt="a red circle", num=11, seed=2)
    [whole] = drawn(pipeline, [request])
    parts = list(request.parts(pipeline.model.generator.noise_dim, 4))
    [first], [second, third] = pipeline.draw_parts(parts[:1]), pipeline.draw_parts(parts[1:])
    assert torch.equal(torch.cat([first.images, second.images, third.images]), whole.images)
    assert first.numbers + second.numbers + third.numbers == whole.numbers == list(range(11))


def test_images_are_far_from_black_and_white(pipeline: TextToImagePipeline) -> None:
    """Else what rounds otherwise would not be seen."""
    [drawing] = drawn(pipeline, [Request(prompt="a red circle", num=8)])
    assert (drawing.images.abs() > 0.99).float().mean() < 0.1
    assert np.std(drawing.images.numpy()) > 0.1
