"""A run small enough for a test: networks of a few channels and the language model of a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is not marked `quick` here is part of `make test-all` alone."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("quick") is None:
            item.add_marker("full")


@pytest.fixture(scope="session")
def tiny(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run that takes a moment."""
    options = {
        "text.model": language_model,
        "text.cache-dir": tmp_path_factory.mktemp("text-cache"),
        "train.batch-size": 4,
        "train.steps": 6,
        "model.noise-dim": 3,
        "model.region-dim": 8,
        "model.global-dim": 8,
        "log.every": 1,
        "log.samples": 4,
        "checkpoint.every": 2,
        "loss.penalty-every": 3,
    }
    channels = [
        "--log.no-tensorboard",
        "--model.generator-channels",
        "4",
        "4",
        "4",
        "4",
        "--model.discriminator-channels",
        "4",
        "4",
        "4",
        "4",
    ]
    return [word for name, value in options.items() for word in (f"--{name}", str(value))] + channels
