"""Pickled lists are read, and nothing that a pickle asks for is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastt2i.data.sources.cub import cub_index
from fastt2i.data.sources.pickles import read_integers, read_strings
from fastt2i.errors import UserError


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
        cub_index(birds)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\n__import__\n(S'os'\ntR.",
        b"cfastt2i.data.sources.pickles\n_load\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cos\nsystem\n.",
        b"(S'touch run'\nios\nsystem\n.",
        b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR.",
        pickle.dumps(np.arange(3)),
        pickle.dumps(np.float64(1.5)),
        pickle.dumps({"a": Calls("touch run")}),
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
        b"P1\n.",
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
        read_integers(pickle.dumps({"a": 1}), "x")


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_content_is_a_list_or_one_sentence(content: bytes) -> None:
    try:
        read_strings(content, "x")
    except UserError as error:
        str(error).encode()
