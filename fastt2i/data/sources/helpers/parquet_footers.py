"""Looks at the footers of parquet files in a process of its own: a flipped bit in one makes pyarrow abort its process.

Run as a program it takes a JSON list of files from stdin, and says of each, a line of JSON, what is wrong with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from fastt2i.errors import UserError

_ABORTED = "its footer is damaged: reading it ends the process that tries"


def footer_damages(files: Sequence[str]) -> list[str | None]:
    """What is wrong with the footer of each parquet file; None where a process can read all of it.

    One process looks at all files; after one that ends it, another goes on.
    Raises UserError: pyarrow is missing, or no process can be started.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError("reading parquet takes pyarrow: install it with pip install 'fastt2i[parquet]'") from error
    # Not by multiprocessing, which runs the caller's script once more where that has no guard against it; and not by
    # `-m`, which looks for modules in the working directory.
    command = [sys.executable, __file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found: list[str | None] = []
    while len(found) < len(files):
        asked = json.dumps(files[len(found) :]).encode()
        try:
            ended = subprocess.run(command, input=asked, env=environment, capture_output=True)
        except OSError as error:
            raise UserError(f"no process can be started to look at parquet files: {error.strerror}") from error
        found += map(json.loads, ended.stdout.splitlines())
        if ended.returncode < 0:  # by a signal
            found.append(_ABORTED)
        elif ended.returncode:
            told = ended.stderr.decode(errors="replace").split("\n")
            last = next((line for line in reversed(told) if line.strip()), f"it exits with {ended.returncode}")
            raise UserError(f"the process that looks at parquet files fails: {last}")
    return found


def _damage(file: str) -> str | None:
    try:
        for _ in _parts(file):
            pass
    except (OSError, ValueError, IndexError) as error:
        if getattr(error, "errno", None) is None:  # else the system's, of which the caller will hear
            return " ".join(str(error).split()) or type(error).__name__
    return None


def _parts(file: str) -> Iterator[object]:
    """All of a footer that `fastt2i.data.sources.parquet` reads."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        yield list(table.schema_arrow)
        for group in map(table.metadata.row_group, range(table.num_row_groups)):
            yield group.num_rows, group.total_byte_size
            for column in map(group.column, range(group.num_columns)):
                yield column.path_in_schema, column.total_uncompressed_size


if __name__ == "__main__":
    for name in json.load(sys.stdin):
        print(json.dumps(_damage(name)), flush=True)
