"""A run small enough for a test: networks of a few channels and the language model of a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_runs import run_options

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
    return run_options(language_model, tmp_path_factory.mktemp("text-cache"))
