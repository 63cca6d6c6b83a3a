"""What parts words for a reader parts them for the tokenizer."""

from __future__ import annotations

import pytest

from fastt2i.text.normalize import separate_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a gray\ufffd\ufffdbeak", ["a", "gray", "beak"]),
        ("red\u200bbird", ["red", "bird"]),
        ("red\ufeffbird", ["red", "bird"]),
        ("red\u200dbird", ["red", "bird"]),
        ("red\U0001f426bird", ["red", "\U0001f426", "bird"]),
        ("a \U0001f468\u200d\U0001f469 couple", ["a", "\U0001f468\u200d\U0001f469", "couple"]),
        ("thumb\U0001f44d\U0001f3fdup", ["thumb", "\U0001f44d\U0001f3fd", "up"]),
        ("beau\u00adtiful", ["beautiful"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("20 °C naïve 一只鸟", ["20", "°C", "naïve", "一只鸟"]),
        ("\ufffd\u200b", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert separate_words(text).split() == words


def test_nothing_else_changes() -> None:
    plain = "".join(map(chr, range(0x20, 0xAD))) + "äöü ñ ß 日本 क्ष العربية"
    assert separate_words(plain) == plain
