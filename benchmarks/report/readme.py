"""Results that are committed, and the README's tables, which are made of them and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.result import OURS, Case, Result, read_result
from benchmarks.kernels.table import RESULTS
from benchmarks.report.document import Heading, Paragraph, Table, markdown
from benchmarks.report.units import bytes_of, milliseconds, significant, times
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COMPILED = "torch.compile"
#: Eager PyTorch goes by these names; what is none of them, nor compiled, is a peer's form.
EAGER = ("reference", "eager + AMP")
#: What is kept of a run. The rest tells of the person and the machine, or is raw data.
KEPT = {
    "machine_info": ("fastt2i", "python_version", "python_implementation", "system", "machine"),
    "commit_info": ("id", "time", "dirty"),
}
KEPT_OF_A_CASE = ("name", "stats", "extra_info")
#: From the root or a home; its name may be that of a person, so none of it stays but a file's name.
ABSOLUTE_PATH = re.compile(r"(?<![\w./\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\",;()]+[/\\])+([^\s/\\:'\",;()]*)")


def keep(path: Path, results: Path = RESULTS) -> Path:
    """Put a trimmed copy of a result where those that are committed are; returns its path.

    Raises:
        UserError: it is no result.
    """
    device = read_result(path).device
    target = results / device.slug / "suite.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, _written(trimmed(json.loads(path.read_text(encoding="utf-8")))).encode())
    return target


def trimmed(content: dict[str, Any]) -> dict[str, Any]:
    """Without raw data, and without what tells of a person: names of users and hosts, and paths."""
    kept: dict[str, Any] = {key: content[key] for key in ("version", "datetime") if key in content}
    for section, keys in KEPT.items():
        kept[section] = _only(content.get(section) or {}, keys)
    kept["benchmarks"] = [_only(case, KEPT_OF_A_CASE) for case in content["benchmarks"]]
    for case in kept["benchmarks"]:
        case["stats"] = {name: value for name, value in case.get("stats", {}).items() if name != "data"}
    return _without_paths(kept)


def _only(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


def _without_paths(value: Any) -> Any:
    """Absolute paths, as reasons for what is unavailable may hold them, become the name of the file."""
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return ABSOLUTE_PATH.sub(_name_of_file, value) if isinstance(value, str) else value


def _name_of_file(path: re.Match[str]) -> str:
    return path.group(1) if "." in path.group(1) else "…"


def _written(content: dict[str, Any]) -> str:
    """JSON with a line for each case, so that a difference shows which have changed."""
    head = {key: value for key, value in content.items() if key != "benchmarks"}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    cases = ",\n".join(json.dumps(case) for case in content["benchmarks"])
    return "{\n" + "".join(f"{line},\n" for line in lines) + f'"benchmarks": [\n{cases}\n]\n}}\n'


def kept_results(results: Path = RESULTS) -> list[Result]:
    """All that are committed: GPUs first, then by name."""
    found = [read_result(path) for path in results.glob("*/suite.json")]
    return sorted(found, key=lambda result: (result.device.type == "cpu", result.device.name))


def readme_tables(results: Path = RESULTS) -> str:
    """What stands between the README's marks: a table for each device, or nothing."""
    devices = [result for result in kept_results(results) if any(case.headline for case in result.cases)]
    return markdown(block for result in devices for block in _device(result)) if devices else ""


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


def _device(result: Result) -> Iterator[Heading | Paragraph | Table]:
    versions = result.device.versions
    told = [f"{name} {versions[name]}" for name in ("torch", "triton") if name in versions]
    changed = " with uncommitted changes" if result.dirty else ""
    yield Heading(f"Measured on {result.device.name}", 3)
    yield Paragraph(
        f"{', '.join(told)}, commit {result.commit[:7]}{changed}, {result.measured[:10]}. Medians, with quartiles in "
        "brackets; a ratio is the time of the other over the time of ours. Memory is the peak of ours, and of eager "
        "PyTorch."
    )
    cases = [case for case in result.cases if case.headline]
    peers = ["peers' form"] * any(_peers(case) for case in cases)
    head = ["operator", "case", "dtype", "ours, ms", "eager PyTorch", COMPILED, *peers, "memory"]
    yield Table(head, [_row(case, bool(peers)) for case in cases], words={"operator", "case", "dtype"})


def _row(case: Case, with_peers: bool) -> list[str]:
    eager = next((name for name in EAGER if name in case.alternatives), "")
    row = [case.key.operator, f"{case.key.case}, {case.key.direction}", case.key.dtype, milliseconds(case.time())]
    row += [_against(case, name) if name in case.alternatives else "" for name in (eager, COMPILED)]
    if with_peers:
        row.append("; ".join(f"{name}: {_against(case, name)}" for name in _peers(case)))
    peaks = [case.candidates[name].peak_bytes for name in (OURS, eager) if name]
    return [*row, ", ".join(bytes_of(peak) for peak in peaks) if len(peaks) == 2 and None not in peaks else ""]


def _against(case: Case, name: str) -> str:
    return f"{significant(case.time(name).median)} ms, {times(case.ratio(name))}"


def _peers(case: Case) -> list[str]:
    return [name for name in case.alternatives if name not in (*EAGER, COMPILED)]
