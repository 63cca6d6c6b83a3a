"""Reads the lists that older data sets keep as pickles, and runs nothing that such a file asks for.

A pickle is a program. This reader lets it make lists, text and numbers, and nothing else: the few names that lists of
numpy's integers refer to stand for functions of this module.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

from fastt2i.errors import UserError

MAX_PICKLE = 2**26  # bytes
_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}


def read_strings(content: bytes, where: str) -> list[str]:
    """A pickled list of text, of Python 2 or 3. Raises UserError: it is none, or asks for more."""
    found = _load(content, where)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{where} does not hold a pickled list of names")
    return found


def read_integers(content: bytes, where: str) -> list[int]:
    """A pickled list of whole numbers, Python's or numpy's. Raises UserError: it is none, or asks for more."""
    found = _load(content, where)
    if not isinstance(found, list) or not all(isinstance(item, int) for item in found):
        raise UserError(f"{where} does not hold a pickled list of whole numbers")
    return found


def _load(content: bytes, where: str) -> Any:
    if len(content) > MAX_PICKLE:
        raise UserError(f"{where} is refused: it is larger than {MAX_PICKLE >> 20} MiB")
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except _Refused as error:
        raise UserError(
            f"{where} is refused: it asks for {error}, and only lists of text and numbers are read from a pickle"
        ) from error
    except Exception as error:  # what is no pickle, or a damaged one, can raise almost anything
        raise UserError(f"{where} is not a pickle that can be read: {str(error) or type(error).__name__}") from error


class _Refused(Exception):
    """The name that a pickle may not have."""


# The one written in Python: in C, a few bytes can make it reserve more memory than there is.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # A new function each time, so that whatever a pickle does to it ends with the pickle.
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *_: _Dtype(code)
        if (module, name) in (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")):
            return lambda dtype, content: _integer(dtype, content)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: str.encode(text, "latin1")
        raise _Refused(f"{module}.{name}".encode("ascii", "backslashreplace").decode()[:80])


class _Dtype:
    """What is needed of a pickled numpy dtype."""

    def __init__(self, code: str) -> None:
        if code not in _INTEGERS:
            raise _Refused(f"numpy's {code!r:.20}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])


def _integer(dtype: _Dtype, content: bytes | str) -> int:
    raw = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, _Dtype) or len(raw) != int(dtype.code[1:]):
        raise ValueError("a number of another size than its type has")
    return int.from_bytes(raw, "big" if dtype.order == ">" else "little", signed=dtype.code[0] == "i")
