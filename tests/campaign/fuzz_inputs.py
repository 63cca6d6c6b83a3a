"""Inputs that nobody means: values of every kind where others belong, and whole files with parts changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from fastt2i.config import Config

#: Names that lead out of a folder, or nowhere.
NAMES = st.sampled_from(
    [
        *(
            "a.png",
            "b.jpg",
            "sub/c.png",
            "./a.png",
            "a.PNG",
            "a.txt",
            "",
            ".",
            "..",
            "a\0.png",
            "nul",
            "a.png/",
            "\udcff.png",
        ),
        *(
            "../secret.png",
            "sub/../../secret.png",
            "/etc/hostname",
            "~/.bashrc",
            "out.png",
            "file:///etc/passwd",
            "a" * 300,
        ),
    ]
)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from(
        [10**6, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, float("nan"), float("inf"), -0.0, 0.1, 1e-320]
    ),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    NAMES,
    st.sampled_from(["auto", "none", "yes", "0", "1e999", "a red bird\n", "\ud800", "\x1b[2J"]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def changed_bytes(wholes: Sequence[bytes], places: Sequence[int] = ()) -> st.SearchStrategy[bytes]:
    """Whole files with some changes; places: where changes are more likely than elsewhere, as in a header."""
    longest = max(map(len, wholes))
    place = st.integers(0, longest)
    if places:
        place = st.one_of(place, st.sampled_from(list(places)))
    change = st.tuples(
        st.sampled_from(["set", "set", "flip", "digits", "delete", "insert", "copy", "cut", "zero"]),
        place,
        st.integers(0, 2**32 - 1),
    )
    return st.builds(_change, st.sampled_from(list(wholes)), st.lists(change, min_size=1, max_size=5))


def _change(whole: bytes, changes: Sequence[tuple[str, int, int]]) -> bytes:
    content = bytearray(whole)
    for kind, place, value in changes:
        place = place % (len(content) + 1)
        length = value % 700 + 1
        if kind == "set":
            content[place : place + 1] = bytes([value % 256])
        elif kind == "flip" and place < len(content):
            content[place] ^= 1 << value % 8
        elif kind == "digits":
            content[place : place + 8] = (b"%08d" % (value % 10**8), struct.pack("<Q", value << 20), b"\xff" * 8)[
                value % 3
            ]
        elif kind == "delete":
            del content[place : place + length]
        elif kind == "insert":
            content[place:place] = bytes([value % 256]) * length
        elif kind == "copy":
            content[place:place] = content[value % (len(content) + 1) :][:length]
        elif kind == "cut":
            del content[place:]
        else:
            content[place : place + length] = bytes(len(content[place : place + length]))
    return bytes(content)


def changed_json(whole: Any) -> st.SearchStrategy[Any]:
    """A JSON value with one to three of its parts replaced or removed."""
    change = st.tuples(st.integers(0, 10**6), st.one_of(VALUES, st.just(REMOVED)))
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _replaced(whole, changes))


REMOVED = object()


def _replaced(whole: Any, changes: Sequence[tuple[int, Any]]) -> Any:
    content = json.loads(json.dumps(whole))
    for number, value in changes:
        places = list(_places(content))
        if not places:
            return value
        holder, key = places[number % len(places)]
        if value is REMOVED:
            del holder[key]
        else:
            holder[key] = value
    return content


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def configurations() -> st.SearchStrategy[str]:
    """Texts of a `config.yaml`: with other values, other names, and other bytes."""
    import yaml

    text = Config().to_yaml()
    whole = yaml.safe_load(text)
    dump: Callable[[Any], str] = lambda value: yaml.safe_dump(value, allow_unicode=True)  # noqa: E731
    field = st.sampled_from([(section, name) for section, values in whole.items() for name in values])
    one = st.tuples(field, VALUES).map(lambda drawn: json.dumps({drawn[0][0]: {drawn[0][1]: drawn[1]}}))
    anything = st.dictionaries(st.sampled_from([*whole, "other"]), VALUES, max_size=3).map(dump)
    damaged = changed_bytes([text.encode()]).map(lambda content: content.decode("utf-8", "replace"))
    return st.one_of(one, one, anything, damaged, st.text(max_size=200))


def rows() -> st.SearchStrategy[dict[str, Any]]:
    """Rows of a table of images and captions."""
    name = st.sampled_from(["file_name", "text", "caption", "captions", "prompt", "class", "other"])
    wrong = st.dictionaries(name, VALUES, max_size=4)
    right = st.fixed_dictionaries({"file_name": NAMES, "text": st.one_of(TEXTS, st.lists(TEXTS, max_size=3))})
    return st.one_of(right, right, wrong)


def jsonl() -> st.SearchStrategy[bytes]:
    """The content of a `metadata.jsonl`."""
    line = st.one_of(
        rows().map(lambda row: json.dumps(row).encode()),
        rows().map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
        st.binary(max_size=40),
        st.sampled_from([b"[" * 5000, b"{}", b"", b"null", b'{"file_name": "a.png", "text": 1e999}', b"\xff\xfe{"]),
    )
    end = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])
    first = st.sampled_from([b'{"file_name": "a.png", "text": "a bird"}', b""])  # or most would be refused
    return st.tuples(first, st.lists(line, max_size=6), end).map(lambda drawn: drawn[2].join([drawn[0], *drawn[1]]))


def csv() -> st.SearchStrategy[bytes]:
    """The content of a `metadata.csv`."""
    cell = st.one_of(NAMES, TEXTS, st.sampled_from(['"', '"""', ",", "\r", "\n", '"a', "x" * 140_000]))
    header = st.one_of(
        st.just("file_name,text"), st.just("text,file_name,file_name"), st.lists(cell, max_size=4).map(",".join)
    )
    body = st.lists(st.lists(cell, max_size=4).map(",".join), max_size=6)
    first = st.sampled_from(["a.png,a bird", "a bird,b.jpg,a.png", ""])
    parts = st.tuples(header, first, body, st.sampled_from(["\n", "\n", "\r\n", "\0\n", ";"]))
    text = parts.map(lambda drawn: drawn[3].join([drawn[0], drawn[1], *drawn[2]]))
    encoding = st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "cp1252"])
    return st.tuples(text, encoding).map(lambda drawn: drawn[0].encode(drawn[1], "replace"))


def captions() -> st.SearchStrategy[bytes]:
    """The content of a `.txt`."""
    encoding = st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "cp1251", "shift_jis", "utf-7"])
    encoded = st.tuples(st.text(max_size=200), encoding).map(lambda drawn: drawn[0].encode(drawn[1], "replace"))
    odd = st.sampled_from(
        ["\u200b", "\ufffd", "\ufeff", "\u202e", "\u0301" * 50, "\x1b]0;", "\0", "\x85", "\u2028", "e\u0301"]
    )
    spoiled = st.lists(st.one_of(odd, st.text(max_size=10)), max_size=20).map(lambda parts: "".join(parts).encode())
    return st.one_of(st.binary(max_size=200), encoded, spoiled)


def safetensors(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file of tensors with other bytes, and with other values in its header."""
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def packed(value: Any) -> bytes:
        content = json.dumps(value).encode()
        return len(content).to_bytes(8, "little") + content + body

    other_names = st.lists(st.text(max_size=5), max_size=3).map(
        lambda names: packed({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    )
    return st.one_of(changed_bytes([whole], range(8 + length)), changed_json(header).map(packed), other_names)
