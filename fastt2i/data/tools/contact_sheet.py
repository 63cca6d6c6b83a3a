"""A picture of some samples of a set: each image whole, its captions under it, their keywords marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from fastt2i.pictures.grids import font

_CELL = 232  # pixels, width and height of an image's place
_GAP = 20
_TEXT, _SMALL, _TITLE = 13, 10, 22
_LINE = _TEXT + 5
_MOST_LINES = 7  # under an image
_INK, _FAINT, _KEYWORD, _PAPER, _MAT, _ALARM = "#24292f", "#8b949e", "#0b5cad", "white", "#f3f4f6", "#b42318"


class Card(NamedTuple):
    """A sample as the sheet shows it."""

    name: str
    image: Image.Image | str
    """Or why there is none."""
    captions: Sequence[str]
    keywords: Sequence[Sequence[str]]
    """Of each caption, in its order; empty where they are not known."""


class _Piece(NamedTuple):
    """A run of characters of a caption."""

    text: str
    marked: bool


def contact_sheet(title: str, subtitle: str, cards: Sequence[Card], columns: int = 6) -> Image.Image:
    """All cards in rows under a title; a row is as high as its longest captions, up to seven lines.

    The sheet is as wide as its columns, of which there is room for two at least; of a title, and of what is under it,
    as much of the end is shown as fits.
    """
    columns = max(1, min(columns, len(cards)))
    texts = [_layout(card) for card in cards]
    rows = [range(start, min(start + columns, len(cards))) for start in range(0, len(cards), columns)]
    heights = [_CELL + _SMALL + 12 + max(len(texts[place]) for place in row) * _LINE for row in rows]
    head = _GAP + _TITLE + _TEXT + 24
    width = max(columns, 2) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, head + sum(heights) + _GAP * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for text, top, color, letters in (
        (title, _GAP, _INK, font(_TITLE, bold=True)),
        (subtitle, _GAP + _TITLE + 8, _FAINT, font(_TEXT)),
    ):
        draw.text((_GAP, top), _shortened(text, letters, width - 2 * _GAP), fill=color, font=letters)
    top = head
    for row, height in zip(rows, heights, strict=True):
        for place in row:
            left = _GAP + (place - row.start) * (_CELL + _GAP)
            _draw_image(sheet, draw, cards[place], left, top)
            name = _shortened(cards[place].name, font(_SMALL), _CELL)
            draw.text((left, top + _CELL + 5), name, fill=_FAINT, font=font(_SMALL))
            for number, line in enumerate(texts[place]):
                _draw_line(draw, line, left, top + _CELL + _SMALL + 12 + number * _LINE)
        top += height + _GAP
    return sheet


def pieces(caption: str, keywords: Sequence[str]) -> list[tuple[str, bool]]:
    """A caption cut where keywords begin and end -> (text, whether it is a keyword)."""
    cut: list[tuple[str, bool]] = []
    end = 0
    for keyword in keywords:
        word = re.escape(keyword)
        # Whole words where there are such: `red` is not in `bored`. Some tokenizers cut words in several.
        found = re.compile(rf"(?<!\w){word}(?!\w)").search(caption, end) or re.compile(word).search(caption, end)
        if found:
            cut += [(caption[end : found.start()], False), (found[0], True)]
            end = found.end()
    return [piece for piece in [*cut, (caption[end:], False)] if piece[0]]


def _draw_image(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=_MAT)
    if isinstance(card.image, str):
        lines = _wrapped([_Piece(card.image, False)], _CELL - 24)[:_MOST_LINES]
        for number, line in enumerate(lines):
            draw.text((left + 12, top + 12 + number * _LINE), line[0].text, fill=_ALARM, font=font(_TEXT))
        return
    factor = _CELL / max(card.image.size)
    size = max(1, round(card.image.width * factor)), max(1, round(card.image.height * factor))
    # Whole pixels of small images stay visible as such.
    filter = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    sheet.paste(card.image.resize(size, filter), (left + (_CELL - size[0]) // 2, top + (_CELL - size[1]) // 2))


def _draw_line(draw: ImageDraw.ImageDraw, line: Sequence[_Piece], left: float, top: float) -> None:
    for text, marked in line:
        width = font(_TEXT, bold=marked).getlength(text)
        draw.text((left, top), text, fill=_KEYWORD if marked else _INK, font=font(_TEXT, bold=marked))
        if marked:
            draw.line((left, top + _TEXT + 3, left + width - 1, top + _TEXT + 3), fill=_KEYWORD)
        left += width


def _layout(card: Card) -> list[list[_Piece]]:
    """The lines under an image: as many captions as there is room for, and a word on the others."""
    lines: list[list[_Piece]] = []
    for number, caption in enumerate(card.captions):
        marked = card.keywords[number] if card.keywords else ()
        own = _wrapped([_Piece("• ", False), *(_Piece(*piece) for piece in pieces(caption, marked))], _CELL)
        others = len(card.captions) - number
        room = _MOST_LINES - len(lines) - (others > 1)
        if len(own) > room:
            if number:
                return [*lines, [_Piece(f"and {others} more", False)]]
            own = [*own[: room - 1], [*own[room - 1], _Piece("…", False)]]
        lines += own
    return lines


def _wrapped(parts: Sequence[_Piece], width: int) -> list[list[_Piece]]:
    lines: list[list[_Piece]] = [[]]
    used = 0.0
    for word in _words(parts, width):
        length = sum(font(_TEXT, bold=piece.marked).getlength(piece.text) for piece in word)
        if used + length > width and lines[-1]:
            lines.append([])
            used = 0.0
        lines[-1] += word
        used += length
    # Neighbours of one kind are drawn as one, so that letters keep their distances.
    return [_joined(line) for line in lines]


def _words(parts: Sequence[_Piece], width: int) -> Iterator[list[_Piece]]:
    """What stays on a line together: characters up to a space, of whatever kinds, if they are not too many."""
    word: list[_Piece] = []
    most = max(1, width // _TEXT)  # characters that fit in any case
    for text, marked in parts:
        for run in re.findall(r"\S+\s*|\s+", text):
            for start in range(0, len(run), most):
                word.append(_Piece(run[start : start + most], marked))
                if run[start : start + most][-1].isspace() or sum(len(piece.text) for piece in word) >= most:
                    yield word
                    word = []
    if word:
        yield word


def _joined(line: Sequence[_Piece]) -> list[_Piece]:
    joined: list[_Piece] = []
    for piece in line:
        if joined and joined[-1].marked == piece.marked:
            joined[-1] = _Piece(joined[-1].text + piece.text, piece.marked)
        else:
            joined.append(piece)
    return joined


def _shortened(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The end of a text, as far as there is room."""
    text = " ".join(text.split())
    end = text[-width:]  # a letter takes a pixel at least
    if end == text and letters.getlength(text) <= width:
        return text
    fits = (start for start in range(len(end)) if letters.getlength("…" + end[start:]) <= width)
    return "…" + end[next(fits, len(end)) :]
