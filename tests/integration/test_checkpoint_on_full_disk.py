"""A disk that is full while a checkpoint is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastt2i.engine.checkpoint import CheckpointStore

FILL = """
import resource, signal, sys, torch
from pathlib import Path
from fastt2i.engine.checkpoint import CheckpointStore
from fastt2i.errors import UserError
store = CheckpointStore(Path(sys.argv[1]), keep=1)
store.save(1, {"net": {"w": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    store.save(2, {"net": {"w": torch.ones(1_000_000)}}, {})
except UserError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """The kernel refuses the write in the middle of the file, as it does when a disk is full."""
    result = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot save a checkpoint" in result.stdout and "File too large" in result.stdout
    assert "step-00000001 is whole" in result.stdout
    checkpoint, damage = CheckpointStore(tmp_path, keep=1).latest()
    assert checkpoint is not None and checkpoint.step == 1 and damage == []
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
