"""What tests of captions share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.text.small_language_models import bert


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))
