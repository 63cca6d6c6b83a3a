"""A report as one HTML page that needs nothing else: styles and pictures are inside, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from itertools import takewhile
from pathlib import Path

from benchmarks.report.document import (
    SAME,
    Beside,
    Block,
    Bullets,
    Cell,
    Details,
    Heading,
    Paragraph,
    Picture,
    Row,
    Table,
)

STYLE = Path(__file__).with_name("page.css")


def page(title: str, blocks: Iterable[Block]) -> str:
    """The whole document."""
    body = "\n".join(_html(block) for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Table(head, rows, words):
            return _table(head, rows, words)
        case Beside(found):
            return f'<div class="beside">{"".join(map(_figure, found))}</div>'
        case Details(summary, blocks):
            inner = "\n".join(_html(inner) for inner in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def _table(head: Sequence[str], rows: Sequence[Row], words: Collection[str]) -> str:
    titles = "".join(_cell(name, "th", name in words) for name in head)
    body = "\n".join(f"<tr>{_row(head, rows, place, words)}</tr>" for place in range(len(rows)))
    # A box of its own that can be reached and scrolled with the keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(", ".join(head))}"><table>'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(head: Sequence[str], rows: Sequence[Row], place: int, words: Collection[str]) -> str:
    cells = []
    for column, name in enumerate(head):
        if rows[place][column] != SAME:
            below = takewhile(lambda cell: cell == SAME, (row[column] for row in rows[place + 1 :]))
            cells.append(_cell(rows[place][column], "td", name in words, 1 + len(list(below)), first=column == 0))
    return "".join(cells)


def _cell(cell: str | Cell, tag: str, is_word: bool, rows: int = 1, first: bool = False) -> str:
    text, kind = (cell, "") if isinstance(cell, str) else (cell.text, cell.kind)
    classes = " ".join(filter(None, ["first" if first else "", "" if is_word else "figure", kind]))
    attributes = (' scope="col"' if tag == "th" else "") + (f' class="{classes}"' if classes else "")
    attributes += f' rowspan="{rows}"' if rows > 1 else ""
    # Long names of operators may break behind an underscore.
    return f"<{tag}{attributes}>{escape(text).replace('_', '_<wbr>')}</{tag}>"


def _figure(picture: Picture) -> str:
    drawn = picture.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.alt)}" ', 1)
    return f"<figure>{drawn}<figcaption>{escape(picture.caption)}</figcaption></figure>"
