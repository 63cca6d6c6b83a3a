"""The contact sheet: every image, its captions, and the keywords where they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastt2i.data.tools.contact_sheet import Card, contact_sheet, pieces


@pytest.mark.parametrize(
    ("caption", "keywords", "marked"),
    [
        ("a red bird, bored, red", ["red", "bird", "red"], "a [red] [bird], bored, [red]"),
        ("bored red", ["red"], "bored [red]"),
        ("Red", ["Red"], "[Red]"),
        ("日本語の", ["日", "語"], "[日]本[語]の"),
        ("embedding", ["em", "bedding"], "[em][bedding]"),
        ("a (b) c++", ["c++"], "a (b) [c++]"),
        ("nothing", ["else"], "nothing"),
        ("nothing", [], "nothing"),
        ("", ["x"], ""),
    ],
)
def test_keywords_are_marked_where_they_are(caption: str, keywords: list[str], marked: str) -> None:
    cut = pieces(caption, keywords)
    assert "".join(f"[{text}]" if is_keyword else text for text, is_keyword in cut) == marked
    assert "".join(text for text, _ in cut) == caption


def card(color: str, size: tuple[int, int], captions: list[str], keywords: list[list[str]] | None = None) -> Card:
    return Card(f"{color}.png", Image.new("RGB", size, color), captions, keywords or [])


def share(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == color).all(axis=2).sum())


def test_every_image_is_there_whole() -> None:
    cards = [card("#ff0000", (300, 100), ["x"]), card("#00ff00", (8, 8), ["x"]), card("#0000ff", (2, 900), ["x"])]
    sheet = contact_sheet("set", "three", cards)
    areas = [share(sheet, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert areas == [232 * 77, 232 * 232, 232]


def test_keywords_have_a_colour_of_their_own() -> None:
    plain = contact_sheet("set", "", [card("#ffffff", (8, 8), ["a red bird"])])
    marked = contact_sheet("set", "", [card("#ffffff", (8, 8), ["a red bird"], [["red"]])])
    assert share(plain, (11, 92, 173)) == 0 < share(marked, (11, 92, 173))


def test_captions_of_any_number_length_and_script() -> None:
    captions = ["word " * 400, "x" * 2000, "日本語" * 50, "café • ‮rtl", "\u0301", "tab\tand  spaces"]
    cards = [card("#ff0000", (9, 9), captions[n:] * k) for n in range(6) for k in (0, 1, 3)]
    tall = contact_sheet("title " * 30, "sub", cards)
    assert tall.width > tall.height / 3 and share(tall, (255, 0, 0)) == len(cards) * 232**2
    one = contact_sheet("set", "", [card("#ff0000", (9, 9), captions)])
    assert one.height < 232 + 100 + 8 * 18 + 40


def test_an_image_that_cannot_be_decoded_says_why() -> None:
    sheet = contact_sheet("set", "", [Card("a.png", "cannot be decoded: damaged: " + "x" * 500, ["one"], [])])
    assert share(sheet, (180, 35, 24)) > 100


@pytest.mark.parametrize("title", ["/data/" + "a-folder/" * 200 + "set", "x" * 50_000, "a\nb " * 100, "日本" * 300])
@pytest.mark.parametrize("count", [1, 2, 6, 9])
def test_a_long_title_makes_no_wide_sheet(title: str, count: int) -> None:
    cards = [card("#ffffff", (8, 8), ["x"])] * count
    short, long = contact_sheet("set", "what it is", cards), contact_sheet(title, title, cards)
    assert short.size == long.size and long.width <= 6 * (232 + 20) + 20
    head = np.asarray(long)[:70]
    assert (head != 255).any() and (head[:, -20:] == 255).all(), "it ends before the margin"


def test_of_a_long_title_the_end_is_shown() -> None:
    def head(title: str) -> bytes:
        return np.asarray(contact_sheet(title, "", [card("#ffffff", (8, 8), ["x"])]))[:45].tobytes()

    assert head("/one/" + "folder/" * 100 + "birds") == head("/two/" + "folder/" * 100 + "birds")
    assert head("/one/" + "folder/" * 100 + "birds") != head("/one/" + "folder/" * 100 + "fishes")
