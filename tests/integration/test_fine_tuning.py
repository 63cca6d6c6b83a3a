"""A run that starts from the model of another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastt2i import TextToImagePipeline, train
from fastt2i.config import Config
from fastt2i.models.pretrained import load_pretrained

PROMPT = "a small red circle on a white background"


@pytest.fixture
def start_from(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[[Path], list[str]]:
    """start_from(model): options of a small run that starts from a model, on pictures with that one's captions."""
    data = tmp_path / "data"
    data.mkdir()
    for number, color in enumerate(("red", "blue", "green", "pink") * 2):
        (data / f"{number}.png").write_bytes(picture(number))
        (data / f"{number}.txt").write_text(f"a {'small' if number < 4 else 'large'} {color} circle")
    small = ["--train.batch-size", "4", "--log.samples", "4", "--log.no-tensorboard"]
    return lambda model: [
        *("--init-from", str(model), "--data", str(data), "--text.cache-dir", str(tmp_path / "cache")),
        *small,
    ]


@pytest.mark.quick
def test_a_run_starts_from_a_model_and_leaves_what_is_frozen(
    model_folder: Path, tmp_path: Path, start_from: Callable[[Path], list[str]]
) -> None:
    first = tmp_path / "first"
    shutil.copytree(model_folder, first)
    options = [*start_from(first), "--optim.freeze", "generator.encoder", "discriminator.stem"]
    assert train.main([*options, "--train.steps", "2", "--out", str(tmp_path / "run")]) == 0
    config = Config.from_yaml((tmp_path / "run" / "config.yaml").read_text(), "config.yaml")
    old, new = load_pretrained(model_folder), load_pretrained(tmp_path / "run")
    assert config.model == old.config and config.optim.freeze == ("generator.encoder", "discriminator.stem")
    assert torch.equal(new.generator.encoder[0].weight, old.generator.encoder[0].weight)
    assert torch.equal(new.discriminator.stem.weight, old.discriminator.stem.weight)
    assert not torch.equal(new.generator.decoder[1].weight, old.generator.decoder[1].weight)
    assert torch.equal(new.generator.whitening.matrix, old.generator.whitening.matrix)
    shutil.rmtree(first)  # a run that goes on has weights of its own
    assert train.main(["--resume", "--train.steps", "3", "--out", str(tmp_path / "run")]) == 0


def test_a_run_at_twice_the_size_begins_with_the_old_picture(
    model_folder: Path, tmp_path: Path, start_from: Callable[[Path], list[str]]
) -> None:
    options = [*start_from(model_folder), "--model.image-size", "64", "--train.steps", "1"]
    # With rates of nearly nothing a step is none.
    options += ["--optim.generator-lr", "1e-12", "--optim.discriminator-lr", "1e-12"]
    assert train.main([*options, "--out", str(tmp_path / "run")]) == 0
    old, new = (TextToImagePipeline.from_pretrained(p)(PROMPT, num=3) for p in (model_folder, tmp_path / "run"))
    for small, large in zip(old, new, strict=True):
        assert large.size == (64, 64)
        upscaled = np.asarray(small).repeat(2, 0).repeat(2, 1).astype(int)
        assert np.abs(upscaled - np.asarray(large)).max() <= 1
