"""What tests of what a process may use share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastt2i.devices import control_groups as groups


@pytest.fixture
def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups of which this process is in `box/inner`."""
    monkeypatch.setattr(groups, "_ROOT", tmp_path)
    monkeypatch.setattr(groups, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/box/inner\n")
    (tmp_path / "box" / "inner").mkdir(parents=True)
    return tmp_path
