"""What `python -m fastt2i.train` looks at before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastt2i import train
from fastt2i.errors import UserError
from fastt2i.files.lock import claim_directory


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    with claim_directory(tmp_path), pytest.raises(UserError, match=f"{tmp_path} is in use by process .* --out$"):
        train.main(["--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".lock.json"}
