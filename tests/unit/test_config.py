"""The configuration checks itself and survives its file."""

from __future__ import annotations

import pytest
import yaml

from fastt2i.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TextConfig, TrainConfig
from fastt2i.errors import UserError
from fastt2i.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_file(name: str) -> None:
    assert Config.from_yaml(preset(name).to_yaml(), "config.yaml") == preset(name)


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        (ModelConfig, {"image_size": 48}, "model.image_size is 48; it must be 32, 64, 128 or 256"),
        (ModelConfig, {"noise": "none"}, "model.noise is 'none'; it must be one of concat, additive"),
        (ModelConfig, {"generator_channels": (8, 8)}, "4 positive widths, one for each resolution from 4 to 32"),
        (ModelConfig, {"region_grid": 32}, r"model.region_grid is 32; it must be one of \[4, 8, 16\]"),
        (LossConfig, {"mismatched": 1.5}, "loss.mismatched is 1.5; it must be between 0 and 1"),
        (LossConfig, {"augment": ("flip",)}, "loss.augment is .* a list, each one of translation, cutout, color"),
        (ModelConfig, {"noise_dim": "8"}, "model.noise_dim is '8'; it must be a whole number"),
        (ModelConfig, {"noise_dim": True}, "model.noise_dim is True; it must be a whole number"),
        (ModelConfig, {"generator_channels": (8, 8.5)}, "it must be a list, each a whole number"),
        (LossConfig, {"sentence": float("nan")}, "loss.sentence is nan; it must be a finite number"),
        (LossConfig, {"sentence": 10**400}, "it must be a finite number"),
        (LossConfig, {"gather": 1}, "loss.gather is 1; it must be true or false"),
        (DataConfig, {"path": None}, "data.path is None; it must be a text"),
        (OptimConfig, {"generator_lr": 0.0}, "optim.generator_lr is 0.0; it must be more than 0"),
        (TrainConfig, {"batch_size": 1}, "train.batch_size is 1; it must be 2 or more"),
        (
            TrainConfig,
            {"accumulate": 5},
            "accumulate is 5; it must be 1 or more, and a divisor of train.batch_size, which",
        ),
    ],
)
def test_a_bad_value_is_one_sentence(section: type, values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        section(**values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: [", "f.yaml is not valid YAML"),
        ("- 1", "f.yaml is not a configuration"),
        ("training: {}", "unknown section 'training'; there are data, text"),
        ("train: {stepz: 3}", "f.yaml: train has no field 'stepz'"),
        ('{"train\\n": {}}', r"unknown section 'train\\n'; there"),
        ('train: {"st\\neps": 3}', r"f.yaml: train has no field 'st\\neps'"),
        ("train: {steps: 0}", "f.yaml: train: train.steps is 0; it must be 1 or more"),
    ],
)
def test_a_bad_file_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Config.from_yaml(text, "f.yaml")


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(UserError, match="no preset tiny; choose one of demo, "):
        preset("tiny")


@pytest.mark.parametrize(("size", "weight"), [(32, 2.0), (64, 0.5), (256, 0.03125)])
def test_a_file_from_before_the_noise_was_balanced_means_what_it_meant(size: int, weight: float) -> None:
    """Its R1 penalty was not scaled by the resolution, and there was no mode seeking."""
    levels = size.bit_length() - 2
    text = yaml.safe_dump(
        {
            "model": {
                "image_size": size,
                "noise_dim": 32,
                "generator_channels": [8] * levels,
                "discriminator_channels": [8] * levels,
            },
            "loss": {"penalty": "r1", "penalty_weight": 2.0},
        }
    )
    config = Config.from_yaml(text, "config.yaml")
    assert not config.model.balanced_noise and config.loss.mode_seeking == 0
    assert config.loss.penalty_weight == weight
    assert Config.from_yaml(config.to_yaml(), "config.yaml") == config


def test_the_home_directory_is_found_where_no_shell_has_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    data = DataConfig(path="~/a::~/b", leave_out="~/verify.jsonl")
    assert (data.path, data.leave_out) == ("/home/her/a::/home/her/b", "/home/her/verify.jsonl")
    text = TextConfig(model="~/lm", stop_words="english", cache_dir="~/cache")
    assert (text.model, text.stop_words, text.cache_dir) == ("/home/her/lm", "english", "/home/her/cache")
