"""From what files hold to captions: decoding, cleaning and the names that captions go by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fastt2i.text.normalize import separate_words

MAX_CAPTION = 2000  # characters
MAX_CAPTION_FILE = 2**18  # bytes

_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as `surrogateescape` keeps them

# What stands in a table, or in the .txt that is made of one, for a missing value (as pandas and HF datasets read it).
_MISSING = {"nan", "none", "null", "n/a", "#n/a", "<na>"}

#: Columns and fields that are looked for, in this order, where the setting `data.text_column` names none.
TEXT_COLUMNS = ("text", "caption", "captions", "prompt")


def text_columns(text_column: str) -> tuple[str, ...]:
    """The names that captions may go by, given the setting."""
    return (text_column,) if text_column else TEXT_COLUMNS


def field_captions(row: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """The captions in the first of these fields that has any: a string, or a list of strings and nulls.

    Empty where a field is there and has no caption, None where none of them is a string or such a list.
    """
    found: list[str] | None = None
    for name in names:
        texts = row.get(name)
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(texts, list) and all(isinstance(text, str) or text is None for text in texts):
            found = [text for text in texts if text is not None and text.strip()]
            if found:
                break
    return found


class FileCaptions(NamedTuple):
    """What a .txt file says of an image."""

    lines: list[str]
    """A caption a line."""
    whole: str
    """All of it as one caption; empty where there is none."""
    problem: str | None
    """What to tell of bytes that are not UTF-8."""

    def beside(self, others: Iterable[str]) -> list[str]:
        """The captions, given those of a table of the same sample: one caption where the table has the whole as one."""
        return [self.whole] if len(self.lines) > 1 and self.whole in others else self.lines


def file_captions(content: bytes) -> FileCaptions:
    """The captions of a .txt file; what goes beyond 256 KiB is cut off."""
    text = decode_text(content[:MAX_CAPTION_FILE])
    lines = text.split("\n")
    whole = next(clean([text]), "") if len(lines) > 1 else ""
    return FileCaptions(list(dict.fromkeys(clean(lines))), whole, encoding_problem(lines))


def decode_text(content: bytes) -> str:
    """Text of a file with or without a byte order mark, its line ends made `\\n`.

    Bytes that are not UTF-8 become lone surrogates, as in the names of files, which a line may hold; of captions,
    `clean` and `encoding_problem` say what becomes of them.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    elif (order := _utf16_order(content)) is not None:
        text = content.decode(order, "replace")
    else:
        text = content.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _utf16_order(content: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, by the zeros of its ASCII characters; None where it is not that."""
    start = content[:1000]
    high, low = start[1::2].count(0), start[::2].count(0)
    if max(high, low) * 4 < len(start) or min(high, low):
        return None
    return "utf-16-le" if high else "utf-16-be"


def clean(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are captions, white space collapsed, cut off at 2,000 characters, fit for a tokenizer.

    No captions are empty texts, and what programs write for a missing value: `nan`, `None`, `null` and alike.
    """
    for text in texts:
        text = _decode_escaped(text[: 2 * MAX_CAPTION]) or ""
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)  # from JSON escapes; no tokenizer takes them
        text = separate_words(text)
        text = re.sub("[\0-\x1f\x7f-\x9f]", " ", text)  # a terminal would obey some of these
        text = " ".join(text.split())[:MAX_CAPTION].rstrip()
        if text and text.lower() not in _MISSING:
            yield text


def encoding_problem(texts: Iterable[str]) -> str | None:
    """What to tell of captions with bytes that are not UTF-8; None where there are none."""
    escaped = [text for text in texts if _ESCAPED.search(text)]
    if not escaped:
        return None
    if all(_decode_escaped(text) is not None for text in escaped):
        return f"captions that are not UTF-8 ({len(escaped)}), read as Windows-1252"
    return f"captions that are not UTF-8 ({len(escaped)}), and are not used: convert the file to UTF-8, as with iconv"


def _decode_escaped(text: str) -> str | None:
    """A text whose bytes that are not UTF-8 are lone surrogates, decoded; None where its encoding is not sure.

    Sure is a text that is mostly ASCII and says the same in the code pages of Western and Central Europe and Turkey:
    typographic quotes and dashes, and the letters that these share.
    """
    if not _ESCAPED.search(text):
        return text
    if any(character > "\x7f" and not _ESCAPED.match(character) for character in text):
        return None  # UTF-8 in part, or another encoding some of whose bytes look like it
    content = text.encode("ascii", "surrogateescape")
    try:
        (decoded, *others) = (content.decode(encoding) for encoding in ("cp1252", "cp1250", "cp1254"))
    except UnicodeDecodeError:
        return None
    mostly_ascii = sum(byte < 128 for byte in content) >= 0.75 * len(content)
    return decoded if mostly_ascii and all(other == decoded for other in others) else None


def parse_json(content: bytes | str) -> Any:
    """What a JSON text holds. Raises ValueError with a sentence, however odd the text is."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
