"""What is committed of a result tells nothing of a person, and is the only source of the README's tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result import read_result
from benchmarks.report import __main__ as program
from benchmarks.report.readme import BEGIN, END, marked, readme_tables, rewrite_readme
from fastt2i.errors import UserError

README = Path(__file__).parents[4] / "README.md"
Json = dict[str, Any]


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# A\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return path


@pytest.fixture
def keep(
    write: Callable[..., Path], readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Json], Path]:
    """Runs the program with --keep; returns the kept file."""
    results = tmp_path / "results"
    monkeypatch.setattr(program, "RESULTS", results)
    monkeypatch.setattr(program, "README", readme)

    def keep(content: Json) -> Path:
        assert program.main([str(write(content)), "--keep"]) == 0
        return results / content["device"]["slug"] / "suite.json"

    return keep


def test_the_readme_says_what_is_committed() -> None:
    text = README.read_text()
    assert text[text.index(BEGIN) : text.index(END) + len(END)] == marked(readme_tables())


def test_without_results_there_is_nothing(tmp_path: Path, readme: Path) -> None:
    assert readme_tables(tmp_path) == ""
    rewrite_readme(readme, tmp_path)
    assert readme.read_text() == f"# A\n\nbefore\n\n{BEGIN}\n{END}\n\nafter\n"


def test_what_is_kept_is_the_same_result(content: Json, write: Callable[..., Path], keep: Callable[..., Path]) -> None:
    path = keep(content)
    before, after = read_result(write(content)), read_result(path)
    assert after == before
    assert keep(json.loads(path.read_text())).read_text() == path.read_text()


def test_nothing_of_a_person_is_kept(content: Json, keep: Callable[..., Path]) -> None:
    reasons = {
        "dali": "no such file: '/home/alice/env/lib/libdali.so' (looked in ~/alice/env)",
        "inductor": r"g++ of C:\Users\alice\bin failed; /home/alice",
        "apex": "forward/backward and torch/phases need a GPU",
    }
    content["cases"][0]["unavailable"] = reasons
    content["device"]["host"] = content["author"] = "alice"
    path = keep(content)
    text = path.read_text()
    assert "alice" in json.dumps(content) and "alice" not in text
    kept = json.loads(text)
    told = kept["cases"][0]["unavailable"]
    assert told["dali"] == "no such file: 'libdali.so' (looked in …)"
    assert told["apex"] == reasons["apex"]


def test_the_table_has_the_figures(content: Json, keep: Callable[..., Path], readme: Path) -> None:
    keep(content)
    text = readme.read_text()
    assert text.startswith(f"# A\n\nbefore\n\n{BEGIN}\n\n### Measured on AMD EPYC, 2 cores\n")
    assert text.endswith(f"\n\n{END}\n\nafter\n")
    assert "torch 2.13.0+cpu, triton 3.9.0, commit 0123456, 2026-11-25." in text
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert table == [
        ["operator", "case", "dtype", "ours, ms", "eager PyTorch", "torch.compile", "peers' form", "memory"],
        ["---"] * 3 + ["---:"] * 5,
        [
            "upsample_gated_conv2d",
            "16x128x16x16 to 64, 3x3, training",
            "fp32",
            "12.3 (12.1–12.7)",
            "30.1 ms, 2.44× (2.39–2.51)",
            "22.7 ms, 1.84× (1.80–1.89)",
            "GLU after upsampling: 31.9 ms, 2.58× (2.53–2.66)",
            "43.2 MB, 98.7 MB",
        ],
    ]


def test_cases_without_some_alternatives(content: Json, keep: Callable[..., Path], readme: Path) -> None:
    for case in content["cases"]:
        case["headline"] = not case.get("headline", False)
    keep(content)
    rows = [line.strip("|").split(" | ") for line in readme.read_text().splitlines() if line.startswith("| text_cache")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["text_cache", "256 rows, step", "", "0.0951 (0.0932–0.0980)", "", "0.0888 ms, 0.934× (0.915–0.962)", ""]
    ]


def test_a_table_for_each_device_gpus_first(content: Json, keep: Callable[..., Path], readme: Path) -> None:
    gpu = copy.deepcopy(content)
    gpu["device"] |= {"name": "NVIDIA H200", "slug": "nvidia-h200", "type": "cuda"}
    gpu["dirty"] = True
    keep(content)
    keep(gpu)
    text = readme.read_text()
    assert text.index("### Measured on NVIDIA H200") < text.index("### Measured on AMD EPYC, 2 cores")
    assert text.count("with uncommitted changes") == 1
    rewrite_readme(readme, readme.parent / "results")
    assert readme.read_text() == text


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + END + END])
def test_a_readme_without_a_place(readme: Path, tmp_path: Path, text: str) -> None:
    readme.write_text(text)
    with pytest.raises(UserError, match="has no place for the results; put a line"):
        rewrite_readme(readme, tmp_path)
    assert readme.read_text() == text
