"""Where evidence goes: its lines straight into the folder that is brought back, the rest as one archive there.

What comes back from a rented machine is a handful of files of limited size; so a stage writes its files into a folder
elsewhere, and the archive is packed anew after every case.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.case_log import LOG, STAGE, CaseLog
from fastt2i.files.atomic import replace_file

#: Bytes that the archive may have.
LARGEST = 14 << 20


class Evidence:
    """The folders of a run.

    Args:
        out: what is brought back: `cases.jsonl`, `summary.json` and `evidence.tar.gz`.
        work: where stages write; what an earlier part of the suite left there stays.

    Attributes:
        cases: the log of all cases of this part.
    """

    def __init__(self, out: Path, work: Path) -> None:
        self.out, self.work = out, work
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        self.cases = CaseLog(out / "cases.jsonl")
        self._packed: Any = None

    def pack(self) -> None:
        """Write the archive, if any file has changed; small files first, and none that would make it too large."""
        files = {p: p.stat() for p in self.work.rglob("*") if p.is_file()}
        state = {path: (file.st_size, file.st_mtime_ns) for path, file in files.items()}
        if state == self._packed:
            return
        buffer, left_out = io.BytesIO(), []
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
            for path in sorted(files, key=lambda p: files[p].st_size):
                if buffer.tell() + min(files[path].st_size, LARGEST) > LARGEST:
                    left_out.append(str(path.relative_to(self.work)))
                    continue
                archive.add(path, str(path.relative_to(self.work)))
        replace_file(self.out / "evidence.tar.gz", buffer.getvalue())
        if left_out:
            replace_file(self.out / "left-out.json", json.dumps(left_out, indent=1).encode())
        self._packed = state

    def summarise(self, outcomes: list[dict[str, Any]]) -> None:
        """Write what became of the stages."""
        replace_file(self.out / "summary.json", json.dumps(outcomes, indent=1).encode())

    def environment(self, stage: str) -> dict[str, str]:
        """Of a stage's process."""
        return os.environ | {"PYTHONUNBUFFERED": "1", LOG: str(self.cases.path), STAGE: stage}
