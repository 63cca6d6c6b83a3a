"""Keywords are the content words of a caption."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.errors import UserError
from fastt2i.models.keywords import inverse_document_frequencies, is_word, load_stop_words, select_keywords

ENGLISH = load_stop_words("english")


def kept(caption: str, idf: dict[str, float] | None = None, most: int = 16) -> list[str]:
    words = caption.split()
    return [words[place] for place in select_keywords(words, ENGLISH, idf or {}, most)]


def test_stop_words_and_punctuation_are_left_out() -> None:
    assert kept("A small , red circle is on the left .") == ["small", "red", "circle", "left"]
    assert kept("The man with THE hat !") == ["man", "hat"]


SHOWN = "left right top bottom above below under over two no not up down red between"


@pytest.mark.parametrize("word", SHOWN.split())
def test_words_that_a_picture_shows_are_no_stop_words(word: str) -> None:
    assert word not in ENGLISH


def test_a_caption_with_no_content_word_keeps_all_words() -> None:
    assert kept("it is the that was there") == ["it", "is", "the", "that", "was", "there"]
    assert kept("the , of") == ["the", "of"]
    assert kept("! ?") == ["!", "?"]


def test_the_rarest_words_stay_in_the_captions_order() -> None:
    idf = {"red": 1.0, "bird": 1.1, "long": 3.0, "beak": 2.0}
    assert kept("red bird long beak", idf, most=2) == ["long", "beak"]
    assert kept("red bird unseen beak", idf, most=2) == ["unseen", "beak"]
    assert kept("one two three four", dict.fromkeys(["one", "two", "three", "four"], 2.0), most=3) == [
        "one",
        "two",
        "three",
    ]


def test_idf_is_its_formula() -> None:
    idf = inverse_document_frequencies([["a", "A", "bird"], ["a"], ["cat"]])
    assert idf == {"a": math.log(4 / 3) + 1, "bird": math.log(4 / 2) + 1, "cat": math.log(4 / 2) + 1}


def test_words_of_every_script() -> None:
    assert all(is_word(w) for w in ("red", "红", "ёлка", "3", "it's", "naïve"))
    assert not any(is_word(w) for w in (",", "—", "“", " ", "", "🙂"))


@given(st.lists(st.text(max_size=6), max_size=30), st.integers(1, 10))
def test_there_is_always_a_keyword_and_never_too_many(words: list[str], most: int) -> None:
    places = select_keywords(words, ENGLISH, {}, most)
    assert places == sorted(set(places)) and len(places) <= most
    assert bool(places) == bool(words)


def test_stop_words_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Der die\ndas\n", "utf-8")
    assert load_stop_words(str(path)) == {"der", "die", "das"}
    assert load_stop_words("none") == frozenset()
    with pytest.raises(UserError, match="text.stop_words is 'nowhere.txt', which cannot be read"):
        load_stop_words("nowhere.txt")
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="which cannot be read"):
        load_stop_words(str(path))
