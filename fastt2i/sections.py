"""Sections of the settings: dataclasses that check the type and the bounds of each of their fields."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from fastt2i.errors import UserError

_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


class Section:
    """Checks the type of every field, and gives the subclasses one way to state a bound.

    WHEN_ABSENT: the values of fields that a file lacks because it is older than they are.
    PATHS: fields that may name files, in which `~` is the home directory.
    """

    WHEN_ABSENT: ClassVar[Mapping[str, Any]] = {}
    PATHS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is not ClassVar and not is_of(getattr(self, name), hint):
                self._reject(name, _described(hint))
        for name in self.PATHS:
            setattr(self, name, paths_from_home(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        """Raise through `_require` where a value is out of bounds."""

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            self._reject(name, right)

    def _reject(self, name: str, right: str) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        raise ValueError(f"{section}.{name} is {getattr(self, name)!r}; it must be {right}")


def paths_from_home(paths: str) -> str:
    """Paths joined by `::`, with `~` at the start of each made the home directory."""
    return "::".join(map(os.path.expanduser, paths.split("::")))


def is_of(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type: a number, a bool, a text, one of a few, or a tuple. Numbers are finite."""
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    return type(value) is hint


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each {_described(get_args(hint)[0])}"
    return _NAMES[hint]


def read_section(kind: type[Section], values: dict[str, Any], where: str) -> Any:
    """A section of the configuration from plain values.

    Raises:
        UserError: a field does not exist, or its value is none that it can have.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {type(values).__name__} and no mapping of fields to values")
    unknown = values.keys() - {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise UserError(f"{where} has no field {sorted(map(str, unknown))[0]!r}")
    try:
        present = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return kind(**{**kind.WHEN_ABSENT, **present})
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}") from error
