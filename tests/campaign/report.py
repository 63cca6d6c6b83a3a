"""What the campaign has tried and found, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastt2i.files.atomic import replace_file
from tests.campaign.parts import Result


def command(result: Result, trial: int, seed: int) -> str:
    """What makes one trial again."""
    again = f" --trial {trial}" if trial >= 0 else ""
    return f"python -m tests.campaign --only {result.part} --seed {seed}{again} --out FOLDER"


def write(out: Path, results: Sequence[Result], seed: int, minutes: float) -> str:
    """Write `report.json` and `report.md`; returns the latter's text."""
    content: dict[str, Any] = {
        "seed": seed,
        "minutes": minutes,
        "seconds": round(sum(result.seconds for result in results)),
        "machine": f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}",
        "parts": [dataclasses.asdict(result) for result in results],
    }
    for part, result in zip(content["parts"], results, strict=True):
        part["survived"] = result.trials - len({failure.trial for failure in result.failures})
        for failure in part["failures"]:
            failure["again"] = command(result, failure["trial"], seed)
    text = table(results, seed, content["seconds"] / 60, content["machine"])
    replace_file(out / "report.json", json.dumps(content, indent=1).encode())
    replace_file(out / "report.md", text.encode())
    return text


def table(results: Sequence[Result], seed: int, minutes: float, machine: str) -> str:
    lines = [
        f"Seed {seed}, {minutes:.0f} minutes, {machine}.",
        "",
        "| part | tried | planned | trials | failures | what happened |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(result.kinds.items()))
        happened = f"skipped: {result.skipped}" if result.skipped else counts
        numbers = f"{result.tried:,} | {result.planned:,} | {result.trials:,} | {len(result.failures)}"
        lines.append(f"| {result.part} ({result.unit}s) | {numbers} | {happened} |")
    failures = [(result, failure) for result in results for failure in result.failures]
    for result, failure in failures:
        again = command(result, failure.trial, seed)
        lines += ["", f"**{result.part}, trial {failure.trial}**: `{again}`", "", "```", failure.what, "```"]
    return "\n".join([*lines, ""])
