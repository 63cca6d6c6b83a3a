"""Dataclasses from JSON files, every value checked: what is missing or wrong is told in one sentence with its place."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fastt2i.errors import UserError

T = TypeVar("T")


def read_json(path: Path, kind: type[T], what: str) -> T:
    """The object in a file as a dataclass; what: what the file should be, for the error.

    Raises:
        UserError: there is no such file, it is no JSON, or a value is missing or wrong.
    """
    # Imported here: a run of the suite, which only writes, needs no more than torch and pytest.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name {what}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name {what}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]]
        place = "".join(keys).removeprefix(".") or "the file"
        why = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {place}: {why}; name {what}") from None
