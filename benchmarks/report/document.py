"""What a report consists of, and the report as Markdown; `document_page.py` makes the page of the same blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Of a table.

    Attributes:
        kind: `worse` or `better` where the reader should look, `same` for what the row above says; empty elsewhere.
    """

    text: str
    kind: str = ""


#: The cell above holds for this row too.
SAME = Cell("", "same")


Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Heading:
    """Level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text; kind: `lead` for what comes first, `warning` for what must not be overlooked, or empty."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows have a cell for each column.

    Attributes:
        words: the columns that hold words, by their names in the head; the others hold figures.
    """

    head: Sequence[str]
    rows: Sequence[Row]
    words: Collection[str] = ()


@dataclass(frozen=True)
class Picture:
    """A diagram.

    Attributes:
        name: of its file, without `.png`.
        alt: what it shows, for those who do not see it.
        svg: in the colour of the text around it, without references to anything else.
        png: on white.
    """

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Beside:
    """Pictures beside each other where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Details:
    """What is shown only to those who ask."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Bullets | Table | Beside | Details


def pictures(blocks: Iterable[Block]) -> Iterator[Picture]:
    """All pictures, inside details too."""
    for block in blocks:
        if isinstance(block, Beside):
            yield from block.pictures
        elif isinstance(block, Details):
            yield from pictures(block.blocks)


def markdown(blocks: Iterable[Block]) -> str:
    """The document as Markdown, with pictures as PNG files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, kind):
            return f"**{_plain(text)}**" if kind else _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(head, rows, words):
            return "\n".join(_rows(head, rows, words))
        case Beside(found):
            return "\n\n".join(f"![{_plain(p.alt)}]({p.name}.png)\n\n*{_plain(p.caption)}*" for p in found)
        case Details(summary, blocks):
            return f"<details><summary>{_plain(summary)}</summary>\n\n{markdown(blocks)}\n</details>"


def _rows(head: Sequence[str], rows: Sequence[Row], words: Collection[str]) -> Iterator[str]:
    yield f"| {' | '.join(map(_plain, head))} |"
    yield f"|{''.join('---|' if name in words else '---:|' for name in head)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    return f"**{_plain(cell.text)}**" if cell.kind == "worse" else _plain(cell.text)


def _plain(text: str) -> str:
    """So that nothing in a text is taken for a sign of Markdown or HTML."""
    text = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    for sign in "\\|*[]`":
        text = text.replace(sign, f"\\{sign}")
    return text
