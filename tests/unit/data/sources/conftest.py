"""What tests of sources share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    """No test of these writes to the user's."""


@pytest.fixture
def shards(make_layout: Callable[[str, Path], str], tmp_path: Path) -> Path:
    return Path(make_layout("webdataset", tmp_path / "shards"))
