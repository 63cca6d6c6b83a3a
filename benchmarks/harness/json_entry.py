"""Reading JSON that somebody hands in: what is wrong is told in one sentence with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastt2i.errors import UserError

_REQUIRED: Any = object()


class Entry:
    """An object in a JSON file, which knows its place there.

    Every access checks the type and raises a `UserError` that names file and place. A default is for a key that may be
    absent; one that is there has to be right. Null counts as absent.
    """

    def __init__(self, value: Any, file: str, place: str = "") -> None:
        self.file, self.place = file, place
        if not isinstance(value, dict):
            raise self.wrong("", "has to be an object")
        self._value: dict[str, Any] = {key: inner for key, inner in value.items() if inner is not None}

    def wrong(self, key: str, why: str) -> UserError:
        """The error for a key, or for the entry itself where it is empty."""
        place = ".".join(part for part in (self.place, key) if part)
        return UserError(f"{self.file}: {place} {why}")

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def entry(self, key: str, default: dict[str, Any] = _REQUIRED) -> Entry:
        return Entry(self._get(key, default), self.file, f"{self.place}.{key}" if self.place else key)

    def entries(self, key: str) -> Iterator[Entry]:
        """The objects of a list."""
        for place, value in enumerate(self.list(key)):
            yield Entry(value, self.file, f"{self.place}.{key}[{place}]" if self.place else f"{key}[{place}]")

    def list(self, key: str) -> list[Any]:
        return self._typed(key, _REQUIRED, list, "has to be a list")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        return self._typed(key, default, str, "has to be a string")

    def truth(self, key: str, default: bool = _REQUIRED) -> bool:
        return self._typed(key, default, bool, "has to be true or false")

    def whole(self, key: str, default: Any = _REQUIRED) -> Any:
        """An integer of at least 0."""
        value = self._get(key, default)
        if value is default:
            return value
        if not _is_number(value) or value != int(value) or value < 0:
            raise self.wrong(key, f"is {value!r}; it has to be an integer of at least 0")
        return int(value)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._number(key, self._get(key))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        return tuple(self._number(key, value) for value in self.list(key))

    def _number(self, key: str, value: Any) -> float:
        if not _is_number(value):
            raise self.wrong(key, f"is {value!r}; it has to be a finite number")
        return float(value)

    def _typed(self, key: str, default: Any, kind: type, why: str) -> Any:
        value = self._get(key, default)
        if value is not default and not isinstance(value, kind):
            raise self.wrong(key, why)
        return value

    def _get(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self._value.get(key, default)
        if value is _REQUIRED:
            raise self.wrong(key, "is missing")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path, kind: str) -> Entry:
    """The object in a file; kind: what it should be, for the error.

    Raises:
        UserError: there is no such file, or it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name {kind}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as JSON ({why}); name {kind}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not {kind}: it holds no JSON object")
    return Entry(content, str(path))
