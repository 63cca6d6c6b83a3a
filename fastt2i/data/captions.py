"""From what files hold to captions: decoding, cleaning and the names that captions go by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_CAPTION = 2000  # characters
MAX_CAPTION_FILE = 2**18  # bytes

#: Columns and fields that are looked for, in this order, where the setting `data.text_column` names none.
TEXT_COLUMNS = ("text", "caption", "captions", "prompt")


def text_columns(text_column: str) -> tuple[str, ...]:
    """The names that captions may go by, given the setting."""
    return (text_column,) if text_column else TEXT_COLUMNS


def field_captions(row: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """The captions in the first of these fields that the row has: a string or a list of strings; None if neither."""
    texts = next((row[name] for name in names if row.get(name) is not None), None)
    texts = [texts] if isinstance(texts, str) else texts
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def file_captions(content: bytes) -> Iterator[str]:
    """The captions of a .txt file, one a line; what goes beyond 256 KiB is cut off."""
    return clean(decode_text(content[:MAX_CAPTION_FILE]).split("\n"))


def decode_text(content: bytes) -> str:
    """Text of a file with or without a byte order mark, its line ends made `\\n`.

    Bytes that are not UTF-8 become lone surrogates, as in the names of files, which a line may hold.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are no empty ones, white space collapsed, cut off at 2,000 characters, fit for a tokenizer."""
    for text in texts:
        # Lone surrogates stand for bytes that are not UTF-8, or come from JSON escapes; no tokenizer takes them.
        text = re.sub("[\ud800-\udfff]", "\ufffd", text[: 2 * MAX_CAPTION])
        text = re.sub("[\0-\x1f\x7f-\x9f]", " ", text)  # a terminal would obey some of these
        text = " ".join(text.split())[:MAX_CAPTION].rstrip()
        if text:
            yield text


def parse_json(content: bytes | str) -> Any:
    """What a JSON text holds. Raises ValueError with a sentence, however odd the text is."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
