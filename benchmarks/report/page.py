"""A report as Markdown with pictures, and as one HTML page that needs nothing else and fetches nothing.

The templates hold all sentences and tables; the page is the Markdown, rendered, with the pictures inside as SVG. What a
template is given is text, and escaped; only `Markup` is taken as Markdown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmarks.report import units
from fastt2i.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
SIGNS = {"worse": "**", "better": "*", "": ""}


class Plot(NamedTuple):
    """A diagram; alt: what it shows, for those who do not see it."""

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


@dataclass
class Document:
    """A report; `write` gives it to people."""

    template: str
    title: str
    content: Mapping[str, Any]
    plots: dict[str, Plot] = field(default_factory=dict)

    def markdown(self) -> str:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=plain,
        )
        names = ("significant", "milliseconds", "times", "with_prefix", "counted")
        environment.filters |= {name: getattr(units, name) for name in names} | {"marked": marked, "plot": self._plot}
        text = environment.get_template(self.template).render(title=self.title, **self.content)
        return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"

    def _plot(self, plot: Plot | None) -> Markup:
        if plot is None:
            return Markup("")
        self.plots[f"{plot.name}.png"] = plot
        return Markup(f"![{plain(plot.alt)}]({plot.name}.png)\n*{plain(plot.caption)}*")

    def html(self, text: str) -> str:
        """The page of the Markdown, which has brought in the plots."""
        style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
        renderer = MarkdownIt("commonmark").enable("table")
        scroll = '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>'
        renderer.add_render_rule("table_open", lambda *_: scroll)
        renderer.add_render_rule("table_close", lambda *_: "</table></div>\n")
        renderer.add_render_rule("image", lambda _, tokens, place, *__: self.plots[tokens[place].attrs["src"]].svg)
        page = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("page.html.jinja")
        return page.render(title=self.title, style=style, body=renderer.render(text))

    def write(self, folder: Path, name: str, page_name: str) -> None:
        """Write the page, the Markdown and the pictures.

        Raises:
            UserError: the folder cannot be written.
        """
        text = self.markdown()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{page_name}.html").write_text(self.html(text), encoding="utf-8")
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
            for file, plot in self.plots.items():
                (folder / file).write_bytes(plot.png)
        except OSError as error:
            raise UserError(f"the report cannot be written to {folder}: {error.strerror}") from error
        print(f"wrote {folder / page_name}.html and {folder / name}.md", file=sys.stderr)


def plain(text: object) -> str:
    """Text in which nothing is taken for a sign of Markdown or HTML, unless it is `Markup`."""
    if isinstance(text, Markup):
        return text
    told = " ".join(str(text).replace("&", "&amp;").replace("<", "&lt;").split())
    return re.sub(r"([\\|*\[\]`]|^[-+#>])", r"\\\1", told)


def marked(text: str, kind: str) -> Markup:
    """A cell that the reader should look at: `worse` or `better`; as it is where the kind is empty."""
    sign = SIGNS[kind] if text else ""
    return Markup(f"{sign}{plain(text)}{sign}")
