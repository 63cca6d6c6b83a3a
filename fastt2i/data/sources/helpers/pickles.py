"""Reads the lists that older data sets keep as pickles, and runs nothing that such a file asks for.

A pickle is a program. This reader lets it make lists, text and numbers, and nothing else: the few names that lists of
numpy's integers refer to stand for functions of this module. None of these looks into what it is given before it knows
that it is text or bytes of a few characters: a pickle can hold a tuple that holds itself twice, and so on, of which to
look at every part takes longer than anybody lives.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from fastt2i.errors import UserError

MAX_PICKLE = 2**22  # bytes; each may be an instruction that takes some time and 64 bytes of memory
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK LIST EMPTY_LIST APPEND APPENDS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET "
    "LONG_BINGET STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 INT BININT BININT1 BININT2 LONG LONG1 LONG4 NONE NEWTRUE NEWFALSE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_TUPLE GLOBAL STACK_GLOBAL REDUCE BUILD"
)
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
    if not isinstance(found, list) or not all(isinstance(item, int) and abs(item) < 2**63 for item in found):
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
    """What a pickle asks for and may not have."""


def _code(name: str) -> int:
    code: bytes = getattr(pickle, name)
    return code[0]


class _Handlers(dict[int, Callable[[Any], None]]):
    """What is done for each instruction that is allowed."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        name = next((op.name for op in pickletools.opcodes if ord(op.code) == code), None)
        raise pickle.UnpicklingError(f"{bytes([code])!r} begins no instruction") if name is None else _Refused(name)


# The one written in Python: in C, a few bytes can make it reserve more memory than there is.
class _Unpickler(pickle._Unpickler):
    dispatch = _Handlers({code: pickle._Unpickler.dispatch[code] for code in map(_code, _INSTRUCTIONS.split())})

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # A new function each time, so that whatever a pickle does to it ends with the pickle.
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *_: _Dtype(code)
        if (module, name) in (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")):
            return lambda dtype, content: _integer(dtype, content)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: _short_bytes(text)
        raise _Refused(f"{module}.{name}".encode("ascii", "backslashreplace").decode()[:80])


class _Dtype:
    """What is needed of a pickled numpy dtype."""

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or code not in _INTEGERS:
            raise _Refused(f"numpy's {code!r:.20}" if isinstance(code, str) else "a dtype without a name")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if isinstance(state[1], str):
            self.order = state[1]


def _integer(dtype: object, content: object) -> int:
    raw = _short_bytes(content)
    if not isinstance(dtype, _Dtype) or len(raw) != int(dtype.code[1:]):
        raise ValueError("a number of another size than its type has")
    return int.from_bytes(raw, "big" if dtype.order == ">" else "little", signed=dtype.code[0] == "i")


def _short_bytes(content: object) -> bytes:
    if not isinstance(content, (str, bytes)) or len(content) > 8:
        raise ValueError("a number of more than eight bytes")
    return content.encode("latin1") if isinstance(content, str) else content
