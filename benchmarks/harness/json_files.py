"""Dataclasses from JSON files, every value checked: what is missing or wrong is told in one sentence with its place.

The harness has to run from a bare checkout beside torch alone, so no library of validation is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fastt2i.errors import UserError

T = TypeVar("T")
WORDS = {str: "a string", bool: "true or false", int: "an integer of at least 0", float: "a finite number"}


def read_json(path: Path, kind: type[T], what: str) -> T:
    """The object in a file as a dataclass; what: what the file should be, for the error.

    Raises:
        UserError: there is no such file, it is no JSON, or a value is missing or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name {what}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as JSON ({why}); name {what}") from None
    try:
        return _parse(kind, content, "")
    except ValueError as error:
        raise UserError(f"{path}: {error}; name {what}") from None


def _parse(kind: Any, value: Any, place: str) -> Any:
    """`value` as an instance of a type: a dataclass, mapping, tuple, literal or plain type, or one of them or None.

    Raises:
        ValueError: it is none; the message begins with its place.
    """
    origin, of = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, place)
    if type(None) in of:
        return _parse(of[0], value, place)
    if origin is Literal:
        _expect(value in of, value, place, " or ".join(of))
        return value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, place, "an object")
        return {key: _parse(of[1], inner, _inside(place, key)) for key, inner in value.items()}
    if hasattr(kind, "_fields"):  # a NamedTuple of numbers
        number = len(kind._fields)
        _expect(isinstance(value, list) and len(value) == number, value, place, f"{number} numbers")
        return kind(*(_parse(float, inner, place) for inner in value))
    if origin is tuple:
        _expect(isinstance(value, list), value, place, "a list")
        return tuple(_parse(of[0], inner, f"{place}[{number}]") for number, inner in enumerate(value))
    if kind in (int, float) and type(value) in (int, float) and math.isfinite(value):
        _expect(kind is float or (value == int(value) and value >= 0), value, place, WORDS[kind])
        return kind(value)
    _expect(kind in (str, bool) and isinstance(value, kind), value, place, WORDS[kind])
    return value


def _parse_dataclass(kind: Any, value: Any, place: str) -> Any:
    """Null counts as absent; keys that are no field are left out."""
    _expect(isinstance(value, dict), value, place, "an object")
    types, given = get_type_hints(kind), {}
    for field in fields(kind):
        inner, inside = value.get(field.name), _inside(place, field.name)
        if inner is not None:
            given[field.name] = _parse(types[field.name], inner, inside)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{inside} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(_inside(place, str(error))) from None


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _expect(holds: bool, value: Any, place: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{place or 'the file'} is {json.dumps(value)[:80]}; it has to be {what}")
