"""Pickled lists are read, and nothing that a pickle asks for is run."""

from __future__ import annotations

import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.data.sources.cub import cub_dataset
from fastt2i.data.sources.helpers.pickles import MAX_PICKLE, read_integers, read_strings
from fastt2i.errors import UserError

ROOT = Path(__file__).parents[4]


class Calls:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_of_every_protocol(protocol: int) -> None:
    assert read_strings(pickle.dumps(["a", "b/ü"], protocol), "x") == ["a", "b/ü"]
    assert read_integers(pickle.dumps([3, -1], protocol), "x") == [3, -1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<i8", ">i4", "u1", "<i2"])
def test_numpys_integers(protocol: int, kind: str) -> None:
    numbers = list(np.array([3, 7, 120], dtype=kind))
    assert read_integers(pickle.dumps(numbers, protocol), "x") == [3, 7, 120]


def test_names_of_python_2() -> None:
    assert read_strings(b"(lp0\nS'001.Caf\\xe9/Bird'\np1\naVuni\\u0063ode\np2\na.", "x") == ["001.Café/Bird", "unicode"]
    assert read_integers(b"(lp0\nI3\naL12345678901L\na.", "x") == [3, 12345678901]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(["fine", Calls(f"touch {tmp_path}/run")], protocol)
    with pytest.raises(UserError, match=r"list\.pickle is refused: it asks for (posix|nt)\.system, and only lists of"):
        read_strings(content, "list.pickle")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["filenames", "class_info"])
def test_a_call_in_a_data_set_is_refused(name: str, make_layout: Callable[[str, Path], str], tmp_path: Path) -> None:
    birds = Path(make_layout("cub", tmp_path / "birds"))
    (birds / "train" / f"{name}.pickle").write_bytes(pickle.dumps([Calls(f"touch {tmp_path}/run")]))
    with pytest.raises(UserError, match=rf"train/{name}\.pickle is refused: it asks for \w+\.system"):
        cub_dataset(birds)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\n__import__\n(S'os'\ntR.",
        b"cfastt2i.data.sources.helpers.pickles\n_load\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cos\nsystem\n.",
        b"(S'touch run'\nios\nsystem\n.",
        b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR.",
        pickle.dumps(np.arange(3)),
        pickle.dumps(np.float64(1.5)),
        pickle.dumps({"a": Calls("touch run")}),
        b"P1\n.",
        pickle.dumps({"a": 1}),
        pickle.dumps({1}),
        pickle.dumps(frozenset([1])),
        pickle.dumps(bytearray(1), 5),
        b"\x80\x05\x96\x00\x00\x00\x00\x02\x00\x00\x00.",  # eight gigabytes of nothing
    ],
)
def test_other_names_are_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="x is refused: it asks for "):
        read_integers(content, "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(["a"])[:-3],
        b"\x80\x02r\xff\xff\xff\xff.",  # puts nothing into a place that is far away
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes without end
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\ntRS'abc'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(I1\nS'abc'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\ntRS'" + b"x" * 10_000 + b"'\ntR.",
        b"c_codecs\nencode\n(V" + b"x" * 10_000 + b"\nVlatin1\ntR.",
    ],
)
def test_what_is_no_pickle_is_one_sentence(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^x is not a pickle that can be read: ") as caught:
        read_strings(content, "x")
    assert "\n" not in str(caught.value)


def test_lists_of_something_else() -> None:
    with pytest.raises(UserError, match="does not hold a pickled list of names"):
        read_strings(pickle.dumps([1]), "x")
    with pytest.raises(UserError, match="does not hold a pickled list of whole numbers"):
        read_integers(pickle.dumps(1), "x")
    with pytest.raises(UserError, match="does not hold a pickled list of whole numbers"):
        read_integers(pickle.dumps([2**63]), "x")


# A tuple that holds itself twice, sixty times over, and so often that memory would not do for a word on each part.
DOUBLED = b"I1\np0\n" + b"g0\n\x86p0\n" * 60


@pytest.mark.parametrize(
    "content",
    [
        DOUBLED + b".",
        b"]" + DOUBLED + b"a.",
        b"cnumpy\ndtype\n(" + DOUBLED + b"I0\nI1\ntR.",
        b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\n" + DOUBLED + b"tb.",
        b"cnumpy.core.multiarray\nscalar\n(" + DOUBLED + b"g0\ntR.",
        b"c_codecs\nencode\n(" + DOUBLED + b"g0\ntR.",
        b"(d" + DOUBLED + b"I1\ns.",
        DOUBLED + b"\x93.",
        DOUBLED + b"g0\nR.",
        DOUBLED + b"g0\nb.",
    ],
)
def test_what_doubles_itself_is_one_sentence(content: bytes) -> None:
    """In a process of its own, which is ended if it does not end."""
    code = (
        "import resource, sys; from fastt2i.data.sources.helpers.pickles import read_integers\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "try: read_integers(sys.stdin.buffer.read(), 'x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, cwd=ROOT, timeout=20)
    assert re.fullmatch(rb"UserError x (is|does) [^\n]{10,200}\n", ended.stdout), ended


@pytest.mark.parametrize("instruction", [b"]", b"I1\n"])
def test_as_many_instructions_as_fit(instruction: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="^x (is not|does not hold) a pickle"):
        read_integers(instruction * (MAX_PICKLE // len(instruction)), "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes
    with pytest.raises(UserError, match="x is refused: it is larger than 4 MiB"):
        read_integers(instruction * MAX_PICKLE + b".", "x")


@given(st.binary(max_size=60))
def test_any_content_is_a_list_or_one_sentence(content: bytes) -> None:
    try:
        read_strings(content, "x")
    except UserError as error:
        str(error).encode()
