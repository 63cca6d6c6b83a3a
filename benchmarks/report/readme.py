"""Results that are committed, and the README's tables, which are made of them and of nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.result import OURS, Case, read_result
from benchmarks.kernels.table import RESULTS
from benchmarks.report.page import Document
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COMPILED = "torch.compile"
#: Eager PyTorch goes by these names; what is none of them, nor compiled, is a peer's form.
EAGER = ("reference", "eager + AMP")
#: From the root or a home; its name may be that of a person, so none of it stays but a file's name.
ABSOLUTE_PATH = re.compile(r"(?<![\w./\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\",;()]+[/\\])+([^\s/\\:'\",;()]*)")


class Row(NamedTuple):
    """Of a case: the alternative in each column, empty where there is none; peak bytes of ours and eager."""

    case: Case
    eager: str
    compiled: str
    peers: list[str]
    peaks: list[int | None]


def keep(path: Path, results: Path = RESULTS) -> Path:
    """Put a copy of a result, without paths of the machine, where those that are committed are; returns its path.

    Raises:
        UserError: it is no result.
    """
    result = read_result(path)
    cases = [
        replace(case, unavailable={name: without_paths(why) for name, why in case.unavailable.items()})
        for case in result.cases
    ]
    target = results / result.device.slug / "suite.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, replace(result, cases=tuple(cases)).to_json().encode())
    return target


def without_paths(text: str) -> str:
    """Absolute paths become the name of the file."""
    return ABSOLUTE_PATH.sub(lambda path: path.group(1) if "." in path.group(1) else "…", text)


def readme_tables(results: Path = RESULTS) -> str:
    """What stands between the README's marks: a table for each device, GPUs first, or nothing."""
    kept, devices = [read_result(path) for path in results.glob("*/suite.json")], []
    for result in sorted(kept, key=lambda result: (result.device.type == "cpu", result.device.name)):
        rows = [_row(case) for case in result.cases if case.headline]
        versions = ", ".join(f"{n} {v}" for n, v in result.device.versions.items() if n in ("torch", "triton"))
        if rows:
            has_peers = any(row.peers for row in rows)
            devices.append({"result": result, "versions": versions, "rows": rows, "has_peers": has_peers})
    return Document("readme.md.jinja", "Measured on", {"devices": devices}).markdown() if devices else ""


def rewrite_readme(readme: Path, results: Path = RESULTS) -> None:
    """Put the tables of the committed results into a README.

    Raises:
        UserError: the file has no place for them.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} has no place for the results; put a line {BEGIN} and a line {END} into it")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    replace_file(readme, f"{before}{marked(readme_tables(results))}{after.removeprefix(END)}".encode())


def marked(tables: str) -> str:
    """The README's part with its marks."""
    return f"{BEGIN}\n\n{tables}\n{END}" if tables else f"{BEGIN}\n{END}"


def _row(case: Case) -> Row:
    eager = next((name for name in EAGER if name in case.alternatives), "")
    compiled = COMPILED if COMPILED in case.alternatives else ""
    peers = [name for name in case.alternatives if name not in (*EAGER, COMPILED)]
    peaks = [case.candidates[name].peak_bytes for name in (OURS, eager) if name]
    return Row(case, eager, compiled, peers, peaks if len(peaks) == 2 and None not in peaks else [])
