"""A result is read as it was written, and whatever is wrong in one is told in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result import Candidate, Key, Quartiles, Roofline, Series, read_result
from benchmarks.report.__main__ import main
from fastt2i.errors import UserError

Json = dict[str, Any]
Write = Callable[..., Path]


def test_everything_is_read(content: Json, write: Write) -> None:
    result = read_result(write(content))
    assert (result.commit[:4], result.dirty, result.measured[:10]) == ("0123", False, "2026-11-25")
    assert (result.device.name, result.device.type) == ("AMD EPYC, 2 cores", "cpu")
    assert result.device.copy_bytes_per_second == 2.1e10
    assert result.device.flops_per_second == {"fp32": 1.1e11, "bf16": 9e10}
    assert [len(cases) for cases in result.operators.values()] == [1, 3, 1]
    case = result.cases[0]
    assert case.key == Key("upsample_gated_conv2d", "16x128x16x16 to 64, 3x3", "fp32", "training")
    told = content["cases"][0]["candidates"]["ours"]["milliseconds"]
    times = {part: Quartiles(*quartiles) for part, quartiles in told.items()}
    assert case.ours == Candidate("ours", times, form="torch/phases", peak_bytes=43_200_000, rounds=21)
    assert case.alternatives == ["reference", "torch.compile", "GLU after upsampling"]
    assert (case.strongest, case.part, case.headline) == ("torch.compile", "both", True)
    assert case.ratio("reference").median == 30.1 / 12.345
    assert case.roofline == Roofline(5.5e6, 1.2e9, 6.1, "compute")
    assert (case.work, case.errors["ours"]) == ({"images": 16}, (1.2e-7, 3.4e-7))
    assert list(case.unavailable) == ["triton"]
    assert result.cases[3].series == Series("region_keyword_loss over the batch", "batch", 64)


def test_what_is_optional_may_be_absent(content: Json, write: Write) -> None:
    for name in ("commit", "dirty", "measured"):
        del content[name]
    del content["device"]["copy_bytes_per_second"]
    del content["device"]["flops_per_second"]
    result = read_result(write(content))
    assert (result.commit, result.measured, result.device.flops_per_second) == ("unknown", "", {})
    assert result.device.copy_bytes_per_second is None
    bare = result.cases[-1]
    assert (bare.headline, bare.work, bare.unavailable, bare.errors, bare.roofline, bare.series) == (
        False, {}, {}, {}, None, None
    )  # fmt: skip
    assert (bare.ours.form, bare.ours.peak_bytes, bare.ours.rounds) == ("", None, None)


def set_at(content: Json, place: str, value: Any) -> None:
    *way, last = place.split("/")
    for key in way:
        content = content[int(key) if isinstance(content, list) else key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


FIRST = "cases/0"
PLACE = r"cases\[0\]"
WRONG = {
    "another file": ("device", ..., "device: Field required; name a result of the benchmark suite"),
    "no machine": ("device", [], "device: Input should be an object"),
    "no cases": ("cases", [], "cases is empty"),
    "a case of another kind": (f"{FIRST}/operator", ..., PLACE + r"\.operator: Field required"),
    "a way out of the folder": ("device/slug", "../../etc", r"device: slug is '\.\./\.\./etc'; it names a folder"),
    "no ours": (f"{FIRST}/candidates/ours", ..., PLACE + ": candidates has to have one candidate of the role ours"),
    "two of ours": (f"{FIRST}/candidates/reference/role", "ours", "has to have one candidate of the role ours"),
    "a role": (f"{FIRST}/candidates/reference/role", "rival", r"\.role: Input should be 'ours', 'alternative' or"),
    "a direction": (f"{FIRST}/direction", "sideways", "direction: Input should be 'training', 'inference' or 'step'"),
    "the part compared": (f"{FIRST}/candidates/ours/milliseconds/both", ..., r"milliseconds\.both is missing"),
    "no ratio": (f"{FIRST}/ratios/torch.compile", ..., r"ratios\.torch\.compile\.both is missing; every candidate"),
    "two quartiles": (f"{FIRST}/ratios/reference/both", [1, 2], r"reference\.both\[2\]: Field required"),
    "falling quartiles": (f"{FIRST}/ratios/reference/both", [3, 2, 1], "three rising numbers above 0"),
    "no time at all": (f"{FIRST}/candidates/ours/milliseconds/both", [0, 1, 2], "three rising numbers above 0"),
    "not a number": (
        f"{FIRST}/candidates/ours/milliseconds/both",
        [1, float("nan"), 2],
        "three rising numbers above 0",
    ),
    "a text for a number": (
        f"{FIRST}/roofline/milliseconds",
        "1",
        r"milliseconds: Input should be a valid number",
    ),
    "a bound of nothing": (f"{FIRST}/roofline/milliseconds", 0, "milliseconds is 0; it has to be a number above 0"),
    "half a byte": (f"{FIRST}/candidates/ours/peak_bytes", 0.5, "peak_bytes: Input should be a valid integer"),
    "a truth": (f"{FIRST}/headline", "yes", "headline: Input should be a valid boolean"),
    "a reason": (f"{FIRST}/unavailable", {"triton": 3}, r"unavailable\.triton: Input should be a valid string"),
}


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told(content: Json, write: Write, place: str, value: Any, sentence: str) -> None:
    set_at(content, place, value)
    path = write(content)
    with pytest.raises(UserError, match=sentence) as raised:
        read_result(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_a_case_is_there_once(content: Json, write: Write) -> None:
    content["cases"].append(content["cases"][-1])
    with pytest.raises(UserError, match="has two cases text_cache, 256 rows, step"):
        read_result(write(content))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "does not exist"), ("", "Invalid JSON"), ("[1]", "should be an object"), ("\xff", "Invalid JSON")],
)
def test_what_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fastt2i: error: ") and sentence in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_result_is_written_as_it_is_read(content: Json, write: Write) -> None:
    result = read_result(write(content))
    path = write({}, "again.json")
    path.write_text(result.to_json())
    assert read_result(path) == result
    assert len(path.read_text().splitlines()) == 5 + 1 + len(result.cases)  # a line for each field and case
