"""What a change did is told of each case, and marked where it is more than the spread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result import Quartiles
from benchmarks.report.__main__ import main
from benchmarks.report.compare import change

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("b", "if_more_is_better", "if_less_is_better"),
    [
        (Quartiles(1.15, 1.2, 1.3), "better", "worse"),
        (Quartiles(0.7, 0.8, 0.85), "worse", "better"),
        (Quartiles(1.05, 1.2, 1.3), "", ""),
        (Quartiles(0.5, 0.8, 2.0), "", ""),
    ],
)
def test_a_change_is_more_than_the_spread(b: Quartiles, if_more_is_better: str, if_less_is_better: str) -> None:
    a = Quartiles(0.9, 1.0, 1.1)
    assert change(a, b, more_is_better=True) == if_more_is_better
    assert change(a, b, more_is_better=False) == if_less_is_better


def slower(content: Json, place: int, factor: float) -> Json:
    """A run in which ours takes longer in one case."""
    changed = copy.deepcopy(content)
    told = changed["cases"][place]
    ours = told["candidates"]["ours"]["milliseconds"]
    ours.update({part: [factor * t for t in times] for part, times in ours.items()})
    for ratios in told["ratios"].values():
        ratios.update({part: [ratio / factor for ratio in ratios[part]] for part in ratios})
    return changed


def rows(text: str, start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(start)
    ]


@pytest.fixture
def compare(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def compare(a: Json, b: Json, *more: str) -> str:
        assert main(["--compare", str(write(a, "a.json")), str(write(b, "b.json")), *more]) == 0
        return capsys.readouterr().out

    return compare


def test_the_same_run_has_no_change(content: Json, compare: Callable[..., str]) -> None:
    told = compare(content, content)
    assert "B is 1.00× as fast as A, as a geometric mean of 5 cases" in told
    assert "0 are faster and 0 slower" in told
    for word in ("faster |", "slower", "better", "worse", "Only in", "different"):
        assert word not in told.replace("0 are faster and 0 slower", "")


def test_a_slower_case_is_marked(content: Json, compare: Callable[..., str]) -> None:
    told = compare(content, slower(content, 4, 2.0))
    time, ratio = rows(told, "| text_cache")
    assert time == [
        "text_cache, 256 rows, step",
        "**slower**",
        "**0.500×**",
        "0.0951 (0.0932–0.0980)",
        "0.190 (0.186–0.196)",
    ]
    assert ratio == [
        "text_cache, 256 rows, step", "torch.compile", "**worse**", "**0.500×**", "0.934× (0.915–0.962)",
        "0.467× (0.458–0.481)", "0.0888 (0.0870–0.0915)", "0.0888 (0.0870–0.0915)",
    ]  # fmt: skip
    assert "0 are faster and 1 slower" in told and "B is 0.871× as fast" in told
    assert not any("slower" in row[1] or row[1] == "faster" for row in rows(told, "| region"))


def test_a_faster_case_is_marked(content: Json, compare: Callable[..., str]) -> None:
    told = compare(slower(content, 0, 1.5), content)
    time, *ratios = rows(told, "| upsample")
    assert (time[1], time[2]) == ("*faster*", "*1.50×*")
    assert [(ratio[1], ratio[2]) for ratio in ratios] == [
        ("reference", "*better*"),
        ("torch.compile", "*better*"),
        ("GLU after upsampling", "*better*"),
    ]


def test_a_change_within_the_spread_is_not_marked(content: Json, compare: Callable[..., str]) -> None:
    told = compare(content, slower(content, 4, 1.04))
    assert [row[1] for row in rows(told, "| text_cache")] == ["", "torch.compile"]
    assert "0 are faster and 0 slower" in told


def test_another_device_and_other_versions_are_named(content: Json, compare: Callable[..., str]) -> None:
    other = copy.deepcopy(content)
    other["device"] |= {"name": "NVIDIA H200", "slug": "nvidia-h200", "type": "cuda"}
    other["device"]["versions"]["torch"] = "2.11.0"
    told = compare(content, other)
    assert "A was measured on AMD EPYC, 2 cores and B on NVIDIA H200: this shows two devices, not a change." in told
    assert "torch 2.13.0+cpu and 2.11.0." in told


def test_cases_of_one_run_alone_are_listed(content: Json, compare: Callable[..., str]) -> None:
    a, b = copy.deepcopy(content), copy.deepcopy(content)
    del a["cases"][0], b["cases"][-1]
    told = compare(a, b)
    assert "## Only in A\n\n- text_cache, 256 rows, step\n" in told
    assert "## Only in B\n\n- upsample_gated_conv2d, 16x128x16x16 to 64, 3x3, fp32, training\n" in told
    del a["cases"][:3]
    b["cases"] = b["cases"][:1]
    assert "The two have no case in common." in compare(a, b)


def test_it_is_a_page_too(content: Json, compare: Callable[..., str], tmp_path: Path) -> None:
    told = compare(content, slower(content, 4, 2.0), "--out", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.html", "compare.md"}
    assert (tmp_path / "out" / "compare.md").read_text() == told
    assert (
        '<td style="text-align:right"><strong>0.500×</strong></td>' in (tmp_path / "out" / "compare.html").read_text()
    )
