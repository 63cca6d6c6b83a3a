"""Captions as files hold them: encodings, columns, and lines that are one caption."""

from __future__ import annotations

import pytest

from fastt2i.data.captions import clean, field_captions, file_captions


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ("“a red bird” – café".encode("cp1252"), ["“a red bird” – café"]),
        ("a red bird".encode("utf-16-le"), ["a red bird"]),
        ("a red bird, naïve".encode("utf-16-be"), ["a red bird, naïve"]),
        ("красная птица".encode(), ["красная птица"]),
    ],
)
def test_an_encoding_that_is_sure_is_read(content: bytes, captions: list[str]) -> None:
    found = file_captions(content)
    assert found.lines == captions and (found.problem is None or "read as Windows-1252" in found.problem)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "gbk", "shift-jis", "euc-kr"])
def test_an_encoding_that_is_not_sure_is_told_and_not_used(encoding: str) -> None:
    texts = {"gbk": "一只红色的鸟", "shift-jis": "赤い鳥", "euc-kr": "빨간 새"}
    found = file_captions(f"a bird\n{texts.get(encoding, 'красная птица')}\n".encode(encoding))
    assert found.lines == ["a bird"]
    assert (
        found.problem == "captions that are not UTF-8 (1), and are not used: convert the file to UTF-8, as with iconv"
    )


def test_different_captions_never_become_the_same_rubbish() -> None:
    for text in ("一只红色的鸟", "一只蓝色的鸟", "红"):
        assert file_captions(text.encode("gbk")).lines == []


def test_utf8_beside_other_bytes_is_not_taken_for_windows() -> None:
    assert file_captions("a long caption in English – ".encode() + b"\x93a\x94").lines == []


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"text": "", "caption": "real"}, ["real"]),
        ({"text": "  ", "caption": ["real"]}, ["real"]),
        ({"text": ["x", None]}, ["x"]),
        ({"text": None, "caption": "real"}, ["real"]),
        ({"text": "one", "caption": "two"}, ["one"]),
        ({"text": "", "caption": None}, []),
        ({"text": 3}, None),
        ({"other": "x"}, None),
    ],
)
def test_the_first_column_with_a_caption_counts(row: dict[str, object], captions: list[str] | None) -> None:
    assert field_captions(row, ("text", "caption")) == captions


def test_lines_that_a_table_has_as_one_caption_are_one() -> None:
    found = file_captions(b"red car\nfor sale\n")
    assert found.beside(["red car for sale"]) == ["red car for sale"]
    assert found.beside(["something else"]) == ["red car", "for sale"]


def test_what_stands_for_a_missing_value_is_no_caption() -> None:
    assert list(clean(["nan", "NaN", " None\n", "null", "N/A", "<NA>", "none of these", "nan bread"])) == [
        "none of these",
        "nan bread",
    ]


def test_what_only_parts_words_is_no_caption() -> None:
    assert list(clean(["\u200b", "\ufffd", "gray\ufffd\ufffdbeak"])) == ["gray beak"]
