"""What programs print, where it goes to pipes and terminals of all kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m fastt2i.doctor | head -c 10"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr
