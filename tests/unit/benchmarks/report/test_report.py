"""The report's figures are those of the result, on the page as in the Markdown, and the page needs nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest

from benchmarks.harness.result import read_result
from benchmarks.kernels.table import CompiledKernel, KernelTable, source_digest
from benchmarks.report import __main__ as program
from benchmarks.report.__main__ import main

Json = dict[str, Any]
FIGURES = re.compile(r"([\d.]+)×? \(([\d.]+)–([\d.]+)\)")
ROWS = (
    CompiledKernel("gated_conv 3x3 128x64x64w8s3, bf16, sm_90", 128, 0, 98_304, "wgmma"),
    CompiledKernel("gate forward_kernel silu, bf16, sm_90", 31, 0, 0, ""),
)


def commit(results: Path, *tables: KernelTable) -> None:
    """Put tables where those that are committed are."""
    (results / "ahead-of-time").mkdir(exist_ok=True)
    for table in tables:
        table.write(results / "ahead-of-time" / f"triton-{table.triton}.json")


@pytest.fixture
def report(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the program with committed tables; returns the folder of the report."""
    monkeypatch.setattr(program, "RESULTS", tmp_path)

    def report(content: Json, *tables: KernelTable) -> Path:
        commit(tmp_path, *tables)
        assert main([str(write(content)), "--out", str(tmp_path / "out")]) == 0
        return tmp_path / "out"

    return report


@pytest.fixture(scope="module")
def usual(original: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of the result that nothing was changed in."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "result.json").write_text(json.dumps(original))
    commit(folder, KernelTable("3.9.0", ROWS, source_digest()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "RESULTS", folder)
        assert main([str(folder / "result.json"), "--out", str(folder / "out")]) == 0
    return folder / "out"


class Page(HTMLParser):
    """The tables of a page as a reader sees them, its references, and the alternative texts of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.alternatives: list[str] = []
        self._open = False
        self._below: dict[int, tuple[int, str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        self.references += [found[name] or "" for name in ("src", "href", "xlink:href", "data") if name in found]
        if tag == "svg":
            self.alternatives.append(found.get("aria-label") or "")
        if tag == "table":
            self.tables.append([])
            self._below = {}
        if tag == "tr":
            self.tables[-1].append([])
            self._from_above()
        if tag in ("td", "th"):
            self._rows = int(found.get("rowspan") or 1)
            self.tables[-1][-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            row = self.tables[-1][-1]
            if self._rows > 1:
                self._below[len(row) - 1] = (self._rows - 1, row[-1])
            self._open = False
            self._from_above()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.tables[-1][-1][-1] += data

    def _from_above(self) -> None:
        row = self.tables[-1][-1]
        while (column := len(row)) in self._below and self._below[column][0]:
            left, text = self._below[column]
            self._below[column] = (left - 1, text)
            row.append(text)


def tables_of(markdown: str) -> list[list[list[str]]]:
    """Tables in Markdown, without the line below their heads."""
    tables, inside = [], False
    for line in markdown.splitlines():
        if line.startswith("|---"):
            continue
        if line.startswith("|"):
            if not inside:
                tables.append([])
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            tables[-1].append([re.sub(r"\\(.)", r"\1", cell.strip().strip("*")) for cell in cells])
        inside = line.startswith("|")
    return tables


def table_with(markdown: str, *head: str) -> list[dict[str, str]]:
    """Rows of all tables whose head has these names; what is the same as above is filled in."""
    rows = []
    for table in tables_of(markdown):
        if set(head) <= set(table[0]):
            label = ""
            for cells in table[1:]:
                label = cells[0] or label
                rows.append(dict(zip(table[0], [label, *cells[1:]], strict=True)))
    return rows


def figures(text: str) -> list[float]:
    low_after_median = FIGURES.search(text)
    assert low_after_median, text
    median, low, high = map(float, low_after_median.groups())
    return [low, median, high]


def test_every_ratio_has_its_medians_and_quartiles(original: Json, usual: Path) -> None:
    rows = table_with((usual / "report.md").read_text(), "alternative", "ratio", "its ms", "ours in ms")
    seen = 0
    for told in original["cases"]:
        part = {"training": "both", "step": "step"}[told["direction"]]
        label = ", ".join(filter(None, [told["case"], told["dtype"], told["direction"]]))
        own = [row for row in rows if row["case"] == label]
        assert figures(own[0]["ours in ms"]) == pytest.approx(
            told["candidates"]["ours"]["milliseconds"][part], rel=5e-3
        )
        for row in own:
            name = row["alternative"]
            assert figures(row["ratio"]) == pytest.approx(told["ratios"][name][part], rel=5e-3)
            assert figures(row["its ms"]) == pytest.approx(told["candidates"][name]["milliseconds"][part], rel=5e-3)
            seen += 1
    assert seen == 7 == len(rows)


def test_every_measurement_is_there(original: Json, usual: Path) -> None:
    rows = table_with((usual / "report.md").read_text(), "candidate", "part", "largest error")
    own = [row for row in rows if row["case"].startswith("16x128")]
    assert [row["part"] for row in own] == ["both", "forward", "backward", "both", "forward"] + [
        "both",
        "forward",
        "backward",
    ] + ["both"] * 2
    assert [row["candidate"] for row in own if row["part"] == "both"] == [
        "ours (torch/phases)",
        "reference",
        "torch.compile",
        "GLU after upsampling",
        "torch/transposed",
    ]
    assert (own[0]["rounds"], own[0]["memory"], own[0]["largest error"]) == ("21", "43.2 MB", "3.4e-07")
    assert figures(own[-1]["ratio"])[1] == pytest.approx(15.5 / 12.345, rel=5e-3)
    alone = original["cases"][0]["ratios"]["torch.compile"]["backward"]
    assert figures(own[7]["ratio"]) == pytest.approx(alone, rel=5e-3)


def test_the_page_says_what_the_markdown_says(usual: Path) -> None:
    seen, written = Page((usual / "index.html").read_text()).tables, tables_of((usual / "report.md").read_text())
    assert len(seen) == len(written) >= 10
    for mine, its in zip(seen, written, strict=True):
        assert [len(row) for row in mine] == [len(its[0])] * len(its)
        assert mine == its


def test_the_headline(usual: Path) -> None:
    text = (usual / "report.md").read_text()
    strongest = [22.7 / 12.345, *(0.005 * b**0.5 / 0.021 for b in (16, 32, 64)), 0.0888 / 0.0951]
    lead = re.search(r"\*\*([\d.]+)× as fast as the strongest alternative, as a geometric mean of 5 cases of 3 ", text)
    assert lead and float(lead.group(1)) == pytest.approx(geometric_mean(strongest), rel=5e-3)
    assert "best 1.90×, worst 0.934×" in text
    assert text.index("as a geometric mean") < text.index("Below 0.97×, so slower") < text.index("| operator |")
    assert "in 2 cases:\n\n- text_cache, 256 rows, step: 0.934× (0.915–0.962) against torch.compile" in text
    assert "- region_keyword_loss, batch 16, R=64 T=16 D=256, fp32, training: 0.952× " in text
    assert "AMD EPYC, 2 cores" in text.splitlines()[0] and "commit 0123456789ab · 2026-11-25 21:30" in text
    assert "copies 21 GB/s, fp32 matrix products 110 GFLOP/s, bf16 matrix products 90 GFLOP/s" in text


def test_a_run_without_losses_says_so(content: Json, report: Callable[..., Path]) -> None:
    content["cases"] = content["cases"][:1]
    content["dirty"] = True
    text = (report(content) / "report.md").read_text()
    assert "No case is below 0.97×." in text and "so slower" not in text
    assert "commit 0123456789ab with uncommitted changes" in text


def test_a_ratio_is_not_rounded_over_the_bound(content: Json, report: Callable[..., Path]) -> None:
    content["cases"][-1]["ratios"]["torch.compile"]["step"] = [0.95, 0.9699, 0.98]
    assert "- text_cache, 256 rows, step: 0.970× " in (report(content) / "report.md").read_text()


def test_a_case_without_alternatives(content: Json, report: Callable[..., Path]) -> None:
    told = content["cases"][-1]
    told["candidates"] = {"ours": told["candidates"]["ours"]}
    told["ratios"] = {}
    text = (report(content) / "report.md").read_text()
    assert "1 more case without an alternative that runs here." in text
    content["cases"] = content["cases"][-1:]
    assert "1 case, none with an alternative" in (report(content) / "report.md").read_text()


def test_the_page_is_self_contained(usual: Path) -> None:
    text = (usual / "index.html").read_text()
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not page.tags & {"script", "iframe", "img", "object", "embed"}
    assert all(reference.startswith("#") or reference == "data:," for reference in page.references)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    identities = re.findall(r'\bid="([^"]*)"', text)
    assert set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(identities)
    assert len(identities) == len(set(identities))


def test_the_pictures(usual: Path) -> None:
    names = {path.stem for path in usual.glob("*.png")}
    assert names == {
        *(f"speed-up-{operator}" for operator in ("upsample_gated_conv2d", "region_keyword_loss", "text_cache")),
        *(f"memory-{operator}" for operator in ("upsample_gated_conv2d", "region_keyword_loss")),
        *("distance", "roofline", "growth-1-time", "growth-1-memory"),
    }
    shown = re.findall(r"^!\[(.+)\]\((.+)\.png\)$", (usual / "report.md").read_text(), re.MULTILINE)
    assert {name for _, name in shown} == names
    assert all((usual / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    alternatives = Page((usual / "index.html").read_text()).alternatives
    assert len(alternatives) == len(names) and all(len(text) > 40 for text in alternatives)
    told = next(text for text in alternatives if text.startswith("Bars: speed-up of region_keyword_loss"))
    assert told == "Bars: speed-up of region_keyword_loss in 3 cases. reference: 0.952× to 1.90×"
    assert any("ours: batch^2.00" in text and "reference: batch^2.50" in text for text in alternatives)


def test_without_floors_limits_and_series(content: Json, report: Callable[..., Path]) -> None:
    content["cases"] = content["cases"][-1:]
    del content["device"]["copy_bytes_per_second"], content["device"]["flops_per_second"]
    out = report(content)
    assert {path.name for path in out.iterdir()} == {"index.html", "report.md", "speed-up-text_cache.png"}
    text = (out / "report.md").read_text()
    for absent in ("Measured limits", "How far from the limits", "Growth", "What could not run here"):
        assert absent not in text


def test_floors_and_growth(usual: Path) -> None:
    text = (usual / "report.md").read_text()
    (floor,) = table_with(text, "times the bound")
    assert figures(floor["times the bound"])[1] == pytest.approx(12.345 / 6.1, rel=5e-3)
    assert (floor["bound by"], floor["fewest bytes"], floor["FLOP"]) == ("compute", "5.5 MB", "1.2e+09")
    assert float(floor["FLOP per byte"]) == pytest.approx(1.2e9 / 5.5e6, rel=5e-3)
    ours, reference = table_with(text, "time grows as")
    assert (ours["time grows as"], ours["memory grows as"], ours["points"]) == ("batch^2.00", "batch^1.00", "3")
    assert (reference["time grows as"], reference["memory grows as"]) == ("batch^2.50", "batch^2.00")
    assert (reference["from"], reference["to"]) == ("16", "64")
    assert "triton, in 1 case of upsample_gated_conv2d: Triton has no cpu backend here" in text


def test_compiled_kernels(content: Json, report: Callable[..., Path]) -> None:
    spilled = (*ROWS, CompiledKernel("gated_conv 3x3 256x32x32w4s2, bf16, sm_90", 255, 24, 65_536, "wgmma"))
    tables = KernelTable("3.9.0", ROWS, source_digest()), KernelTable("3.6.0", spilled, "of others")
    text = (report(content, *tables) / "report.md").read_text()
    newer, older = text.index("### Triton 3.9.0"), text.index("### Triton 3.6.0")
    assert "None of the 2 programs spills a register." in text[newer:older]
    assert "1 of 3 programs spill registers to the stack:**" in text[older:]
    assert "- gated_conv 3x3 256x32x32w4s2, bf16, sm_90: 24 B per thread" in text[older:]
    assert "The kernels have changed since" not in text[newer:older]
    assert "The kernels have changed since this table was made with Triton 3.6.0" in text[older:]
    largest = [row for row in table_with(text, "kernel", "PTX") if row["kernel"] == "gated_conv 3x3"]
    assert [list(row.values()) for row in largest] == [
        ["gated_conv 3x3", "sm_90", "wgmma", "1", "128", "96 KiB", "0 B"],
        ["gated_conv 3x3", "sm_90", "wgmma", "2", "255", "96 KiB", "24 B"],
    ]


def test_without_a_committed_table_it_says_so(content: Json, report: Callable[..., Path]) -> None:
    assert "There is no table of" in (report(content) / "report.md").read_text()


def test_texts_are_texts(content: Json, report: Callable[..., Path], write: Callable[..., Path]) -> None:
    """Whatever a name holds, it is neither markup nor a column of a table, nor the name of a file elsewhere."""
    told = content["cases"][-1]
    told |= {"operator": "../a<b>", "case": "<script>alert(1)</script> | *x* $y$ & `z`"}
    out = report(content)
    page = Page((out / "index.html").read_text())
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script> | *x* $y$ & `z`, step" in {
        cell for table in page.tables for row in table for cell in row
    }
    text = (out / "report.md").read_text()
    assert "<script" not in text and "&lt;script>alert(1)&lt;/script> \\| \\*x\\* $y$ &amp; \\`z\\`, step" in text
    assert (out / "speed-up--a-b-.png").is_file()
    assert read_result(write(content)).cases[-1].key.operator == "../a<b>"


def test_a_folder_that_cannot_be_written(
    content: Json, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(write(content)), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "the report cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a.json"], ["a.json", "--compare", "b.json", "c.json"]])
def test_arguments_that_say_too_little_or_too_much(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_the_report_is_the_same_again(content: Json, report: Callable[..., Path]) -> None:
    first = {path.name: path.read_bytes() for path in report(copy.deepcopy(content)).iterdir()}
    assert {path.name: path.read_bytes() for path in report(content).iterdir()} == first
