"""Files of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastt2i.errors import UserError


def read_prompts(path: Path) -> Iterator[str]:
    """The prompts of a file, one a line; empty lines and a byte order mark are passed over.

    Raises:
        UserError: the file cannot be read, is no text, or has no prompt.
    """
    found = False
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    found = True
                    yield line.strip()
    except OSError as error:
        raise UserError(f"cannot read the prompts {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8, which a file of prompts has to be") from error
    if not found:
        raise UserError(f"{path} has no prompt; write one a line")
