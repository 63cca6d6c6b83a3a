"""The pipeline: what decides an image, choosing among several, ways between prompts, threads, defaults of torch."""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastt2i import TextToImagePipeline
from fastt2i.errors import UserError
from fastt2i.models.pretrained import load_pretrained
from fastt2i.pictures.pixels import gif, png, to_signed
from fastt2i.request import Request

PROMPTS = ["a small red circle on a white background", "a large blue square at the top left"]


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(model_folder, device="cpu")


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_an_image_has_its_noise_whatever_their_number(pipeline: TextToImagePipeline) -> None:
    few, many = (pixels(pipeline(PROMPTS[0], seed=3, num=num)) for num in (2, 5))
    assert np.array_equal(few, many[:2]) and np.abs(few[0] - few[1]).max() > 1


def test_32_images_take_one_pass(pipeline: TextToImagePipeline) -> None:
    sizes = []
    first_block = pipeline.model.generator.blocks[0]
    hook = first_block.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        assert len(pipeline(PROMPTS, num=16)) == 32
    finally:
        hook.remove()
    assert sizes == [32]


def test_more_images_than_memory_holds_are_refused_before_anything_is_drawn(pipeline: TextToImagePipeline) -> None:
    for draw in (
        lambda: pipeline("a red circle", num=10**9),
        lambda: pipeline("a red circle", best_of=10**9),
        lambda: pipeline.interpolate("a red circle", "a blue circle", 10**9),
    ):
        with pytest.raises(
            UserError, match=r"^1000000000 images of 32 px at once would take .* GiB .*; ask for fewer$"
        ):
            draw()


def test_truncation_scales_the_noise(pipeline: TextToImagePipeline) -> None:
    spread = [pixels(pipeline(PROMPTS[0], num=8, truncation=t)).std(axis=0).mean() for t in (0.0, 0.5, 1.0)]
    assert spread[0] < 0.5 and spread[0] < spread[1] < spread[2]


def test_the_best_of_several_are_those_of_the_highest_logits(pipeline: TextToImagePipeline) -> None:
    candidates = pipeline(PROMPTS[0], seed=1, num=8)
    best = pipeline(PROMPTS[0], seed=1, num=3, best_of=8)
    discriminator, encoder = pipeline.model.discriminator, pipeline.model.load_text_encoder(torch.device("cpu"))
    [drawn] = pipeline.draw([Request(prompt=PROMPTS[0], seed=1, num=8)])
    with torch.no_grad():
        sentence = discriminator.sentence(encoder([PROMPTS[0]]).sentence).expand(8, -1)
        logits = discriminator.encode(drawn.images).logits(sentence)
    order = logits.argsort(descending=True)[:3].tolist()
    assert [int(image.info["number"]) for image in best] == order
    assert np.array_equal(pixels(best), pixels([candidates[n] for n in order]))
    assert [float(image.info["score"]) for image in best] == pytest.approx(logits[order].tolist(), abs=1e-3)


def test_a_negative_prompt_takes_its_match_off(pipeline: TextToImagePipeline) -> None:
    [drawn] = pipeline.draw([Request(prompt=PROMPTS[0], num=6)])
    with_, without = pipeline.score(drawn.images, PROMPTS[0], PROMPTS[1]), pipeline.score(drawn.images, PROMPTS[0])
    # Of the other prompt's logit, all but how real the image looks.
    discriminator = pipeline.model.discriminator
    other = pipeline.score(drawn.images, PROMPTS[1]) - discriminator.encode(drawn.images).unconditional
    torch.testing.assert_close(with_, without - other, rtol=1e-5, atol=1e-5)
    chosen = pipeline(PROMPTS[0], best_of=6, negative_prompt=PROMPTS[1])
    assert chosen[0].info["number"] == str(int(with_.argmax()))
    assert chosen[0].info["negative_prompt"] == PROMPTS[1]


def test_the_way_between_prompts_begins_and_ends_at_them(pipeline: TextToImagePipeline) -> None:
    frames = pixels(pipeline.interpolate(*PROMPTS, 5, seed=2))
    ends = pixels(pipeline(PROMPTS, seed=2))
    assert np.array_equal(frames[[0, -1]], ends)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0 and steps.max() < np.abs(ends[0] - ends[1]).mean()
    seeds = pixels(pipeline.interpolate(PROMPTS[0], PROMPTS[0], 3, seed=2, seed_b=9))
    assert np.abs(seeds[0] - pixels(pipeline(PROMPTS[0], seed=2))[0]).max() <= 1
    assert np.abs(seeds[2] - pixels(pipeline(PROMPTS[0], seed=9))[0]).max() <= 1


def test_features_between_prompts_keep_their_length(
    pipeline: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def generate(sentences: torch.Tensor, noise: torch.Tensor, batch_size: int) -> torch.Tensor:
        seen.append(sentences)
        return torch.zeros(7, 3, 8, 8)

    monkeypatch.setattr(pipeline, "_generate", generate)
    pipeline.interpolate(*PROMPTS, 7)
    torch.testing.assert_close(seen[0].norm(dim=1), torch.full((7,), 4.0))


def test_attention_sums_to_one_over_the_image(pipeline: TextToImagePipeline) -> None:
    [drawn] = pipeline.draw([Request(prompt=PROMPTS[0], num=2)])
    words, maps = pipeline.attention(drawn.images, PROMPTS[0])
    assert words == ["small", "red", "circle", "white", "background"] and maps.shape == (2, 5, 8, 8)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 5))


def test_a_prompt_that_is_asked_for_again_is_read_once(pipeline: TextToImagePipeline) -> None:
    read = []
    pipeline = TextToImagePipeline(pipeline.model, device="cpu")
    hook = pipeline._encoder.network.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    try:
        first = pixels(pipeline(PROMPTS[1]))
        again, _ = pixels(pipeline(PROMPTS[1], seed=5)), pipeline.attention(torch.zeros(1, 3, 32, 32), PROMPTS[1])
        assert read == [1]
        other = pixels(pipeline(PROMPTS[::-1]))[1]
        assert read == [1, 1]
    finally:
        hook.remove()
    fresh = TextToImagePipeline(pipeline.model, device="cpu")
    assert np.array_equal(pixels(fresh(PROMPTS[1], seed=5)), again)
    assert np.array_equal(pixels(fresh(PROMPTS[0]))[0], other) and not np.array_equal(first, other)


def test_many_threads_get_what_each_gets_alone(pipeline: TextToImagePipeline) -> None:
    calls: list[dict[str, Any]] = [
        {"prompts": PROMPTS[n % 2] + " , there" * (n % 5), "seed": n, "num": 1 + n % 3, "best_of": 4} for n in range(24)
    ]
    alone = [pixels(pipeline(**call)) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = [pixels(images) for images in pool.map(lambda call: pipeline(**call), calls)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_copies_and_other_processes_draw_the_same(pipeline: TextToImagePipeline) -> None:
    expected = pixels(pipeline(PROMPTS))
    for copied in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert np.array_equal(pixels(copied(PROMPTS)), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num": 1.5}, "num is 1.5; it must be a whole number"),
        ({"num": True}, "num is True; it must be a whole number"),
        ({"seed": 1.0}, "seed is 1.0; it must be a whole number"),
        ({"best_of": "4"}, "best_of is '4'; it must be a whole number"),
        ({"prompt": b"a circle"}, "prompt is b'a circle'; it must be a text"),
        ({"negative_prompt": None}, "negative_prompt is None; it must be a text"),
    ],
)
def test_settings_of_another_type_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        Request(**{"prompt": "a circle", **settings})
    assert Request(prompt="a circle", num=np.int64(2)).candidates == 2


@pytest.fixture(params=["float64", "float16", "meta", "autocast"])
def other_default(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "meta":
        with torch.device("meta"):
            yield request.param
        return
    if request.param == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield request.param
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.param))
    try:
        yield request.param
    finally:
        torch.set_default_dtype(before)


def test_defaults_of_torch_make_no_difference(
    pipeline: TextToImagePipeline, model_folder: Path, other_default: str
) -> None:
    own = TextToImagePipeline.from_pretrained(model_folder, device="cpu")
    images = own(PROMPTS, num=2, best_of=3), own.interpolate(*PROMPTS, 3)
    with torch.device("cpu"), torch.autocast("cpu", enabled=False):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            expected = pipeline(PROMPTS, num=2, best_of=3), pipeline.interpolate(*PROMPTS, 3)
        finally:
            torch.set_default_dtype(before)
    for ours, theirs in zip(images, expected, strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same(
    pipeline: TextToImagePipeline, model_folder: Path, dtype: torch.dtype
) -> None:
    half = TextToImagePipeline.from_pretrained(model_folder, device="cpu", dtype=dtype)
    difference = np.abs(pixels(half(PROMPTS, num=4)) - pixels(pipeline(PROMPTS, num=4)))
    # A rounding is half of 2^-8 of a value; some thirty in a row, that add up as independent errors do, are about 1 %
    # of the 255 levels.
    assert 0 < difference.mean() < 2.55
    with pytest.raises(UserError, match="dtype is torch.float64; it must be one of"):
        TextToImagePipeline.from_pretrained(model_folder, dtype=torch.float64)


def test_a_png_says_what_it_is_of(pipeline: TextToImagePipeline, model_folder: Path) -> None:
    image = pipeline("a red circle, 赤い", seed=7, num=2)[1]
    texts = Image.open(io.BytesIO(png(image))).text  # type: ignore[attr-defined]
    digest = json.loads((model_folder / "config.json").read_text())["sha256"]["generator"]
    assert texts.items() >= {"prompt": "a red circle, 赤い", "seed": "7", "number": "1", "model": digest}.items()


def test_a_gif_goes_there_and_back(pipeline: TextToImagePipeline) -> None:
    animation = Image.open(io.BytesIO(gif(pipeline.interpolate(*PROMPTS, 4), seconds=1)))
    assert animation.n_frames == 6 and animation.info["duration"] == 250  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num": 0}, "num is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be between 0 and"),
        ({"truncation": 2.5}, "truncation is 2.5; it must be between 0 and 2"),
        ({"truncation": float("nan")}, "truncation is nan"),
        ({"num": 4, "best_of": 3}, "best_of is 3; it must be num, which is 4, or more"),
        ({"negative_prompt": "blue"}, "give a best_of that is more than num"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(
    pipeline: TextToImagePipeline, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        pipeline("a red circle", **settings)
    with pytest.raises(UserError, match="frames is 1"):
        pipeline.interpolate(*PROMPTS, 1)


def test_stop_words_are_in_the_folder(model_folder: Path, tmp_path: Path) -> None:
    """Those of a file of the machine that trained, which another does not have."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    header = json.loads((folder / "config.json").read_text())
    del header["sha256"]["config"]  # or a changed file is told of before it is read
    header["text"]["stop_words"] = "/nowhere/words.txt"
    header["stop_words"] = ["small", "a"]
    (folder / "config.json").write_text(json.dumps(header))
    assert load_pretrained(folder).load_text_encoder(torch.device("cpu")).keywords("a small circle on it") == [
        "circle",
        "on",
        "it",
    ]


@pytest.mark.parametrize("name", ["words/bert", "/nowhere/on/this/machine/bert"])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_language_model_is_found_with_the_folder(
    model_folder: Path, language_model: Path, tmp_path: Path, name: str, where: str
) -> None:
    folder = tmp_path / "models" / "mine"
    shutil.copytree(model_folder, folder)
    shutil.copytree(language_model, (folder if where == "inside" else folder.parent) / "bert")
    header = json.loads((folder / "config.json").read_text())
    header["text"]["model"] = name
    (folder / "config.json").write_text(json.dumps(header))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(TextToImagePipeline.from_pretrained(folder)("a red circle")) == 1


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("noise_dim", 5, "generator.safetensors does not fit the config.json"),
        ("noise_dim", 2**31, "config.json is damaged: .* its networks would have [0-9,]+ numbers or more"),
        ("generator_channels", [4, 4, 4, 2**31], "config.json is damaged: .* its networks would have [0-9,]+ numbers"),
    ],
)
def test_weights_of_another_shape_are_one_sentence(
    model_folder: Path, tmp_path: Path, name: str, value: object, sentence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    header = json.loads((folder / "config.json").read_text())
    del header["sha256"]["config"]
    header["model"][name] = value
    (folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=sentence):
        load_pretrained(folder)


def test_scores_ask_for_images_of_any_origin(pipeline: TextToImagePipeline) -> None:
    white = to_signed(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8))
    assert pipeline.score(white, PROMPTS[0]).shape == (1,)
