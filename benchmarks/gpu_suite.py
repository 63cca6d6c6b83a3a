"""All evidence from a GPU in one go, correctness first, in about the minutes given.

    python -m benchmarks.gpu_suite --out DIR --minutes 9

It needs a checkout, torch, Triton, pytest and pytest-benchmark, and installs nothing. Stages, each a process of its own
whose output goes to DIR/<stage>.log: (a) `tests`: every kernel with every configuration, and all tests that need a GPU;
(b) `limits`: copy bandwidth and matrix rates; (c) `operators`: the perf suite without steps and loaders, the most
important cases first; (d) `steps`: the training step every way, with traces; (e) `training`: the demo, with its grid;
(f) `loaders`: DALI's cases, where it can be imported. Time that a stage leaves goes to those after it, one that runs
over is stopped, and DIR/summary.json is written after each. With --device cpu and --tiny it shows its own flow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness.comparison import line
from benchmarks.kernels.table import ROOT
from fastt2i.cli import run
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file

#: Seconds that a process gets to end by itself when its time is over.
GRACE = 10


@dataclass(frozen=True)
class Stage:
    """A part of the suite.

    Attributes:
        share: of the time, next to the others' shares.
        commands: for the seconds that the stage has; they run one after the other, whatever becomes of each.
        needs: a module without which the stage is left out.
    """

    name: str
    share: float
    commands: Callable[[float], list[list[str]]]
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        result: `passed`, `failed`, `stopped` when its time was over, or why it was left out.
        said: the last line that it printed.
    """

    stage: str
    result: str
    seconds: float
    said: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results, pictures and logs go")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows the flow")
    parser.add_argument("--tiny", action="store_true", help="a case or two of each stage")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; --device cpu --tiny shows what the suite does")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for outcome in _run(_stages(out, arguments.device, arguments.tiny), out, 60 * arguments.minutes):
        outcomes.append(outcome)
        print(f"{outcome.stage:10} {outcome.result:10} {outcome.seconds:6.1f} s  {outcome.said}", flush=True)
        replace_file(out / "summary.json", json.dumps([asdict(o) for o in outcomes], indent=1).encode())
    print("\n".join(_table(outcomes, out)), flush=True)
    return 0 if all(outcome.result != "failed" for outcome in outcomes) else 1


def _stages(out: Path, device: str, tiny: bool) -> list[Stage]:
    def pytest(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *arguments]

    def bench(name: str, seconds: float, *arguments: str) -> list[list[str]]:
        file = out / f"{name}.json"
        # A case that has begun may take as long again as the last minute of the stage.
        minutes = str(round(max(seconds - 45, 0.6 * seconds) / 60, 2))
        options = ["--benchmark-only", f"--benchmark-json={file}", "--device", device, "--minutes", minutes]
        report = [sys.executable, "-m", "benchmarks.report", str(file), "--out", str(out / f"{name}-report")]
        return [pytest("-s", *arguments, *options, *["--quick"] * tiny), report]

    def tests(seconds: float) -> list[list[str]]:
        if tiny:
            return [pytest("tests/kernels/test_launch.py")]
        kernels = pytest("tests/kernels", "--ignore=tests/kernels/test_ahead_of_time.py", "-m", "not slow")
        return [kernels, pytest("tests", "-m", "gpu", "--ignore=tests/programs", "--ignore=tests/kernels")]

    def training(seconds: float) -> list[list[str]]:
        minutes = 0.05 if tiny else max(seconds - 15, 5) / 60
        options = ["--out", str(out / "training"), "--minutes", f"{minutes:.2f}", *["--trial", "4"] * tiny]
        return [[sys.executable, "-m", "benchmarks.gpu.timed_training", *options]]

    operators = "not step and not loaders" if not tiny else "text_cache or odd"
    limits = [
        sys.executable,
        "-m",
        "benchmarks.harness.roofline",
        "--device",
        device,
        "--out",
        str(out / "limits.json"),
    ]
    return [
        Stage("tests", 26, tests),
        Stage("limits", 4, lambda seconds: [limits]),
        Stage("operators", 28, lambda seconds: bench("operators", seconds, "benchmarks", "-k", operators)),
        Stage(
            "steps", 16, lambda seconds: bench("steps", seconds, "benchmarks/cases/bench_step.py", "--traces", str(out))
        ),
        Stage("training", 26, training),
        Stage(
            "loaders", 6, lambda seconds: bench("loaders", seconds, "benchmarks/cases/bench_loaders.py"), "nvidia.dali"
        ),
    ]


def _run(stages: Sequence[Stage], out: Path, seconds: float) -> Iterator[Outcome]:
    end = time.monotonic() + seconds
    for place, stage in enumerate(stages):
        left = end - time.monotonic()
        if stage.needs and not _is_there(stage.needs):
            yield Outcome(stage.name, f"left out: {stage.needs} is not installed", 0.0)
            continue
        if left < GRACE:
            yield Outcome(stage.name, "left out: the time is over", 0.0)
            continue
        own = left * stage.share / sum(other.share for other in stages[place:])
        yield _run_stage(stage, out / f"{stage.name}.log", own)


def _run_stage(stage: Stage, log: Path, seconds: float) -> Outcome:
    began, result = time.monotonic(), "passed"
    with log.open("w", encoding="utf-8") as file:
        for command in stage.commands(seconds):
            status = _finish(command, file, began + seconds - time.monotonic())
            result = "stopped" if status is None else result if status == 0 else "failed"
            if status is None:
                break
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return Outcome(stage.name, result, round(time.monotonic() - began, 1), lines[-1].strip() if lines else "")


def _finish(command: Sequence[str], log: object, seconds: float) -> int | None:
    """Its exit status; None if it had to be stopped."""
    process = subprocess.Popen(
        command,
        stdout=log,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        return process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # pytest writes what it has then
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _table(outcomes: Sequence[Outcome], out: Path) -> Iterator[str]:
    """What was measured, a line each, and what became of the stages."""
    width = shutil.get_terminal_size((160, 24)).columns
    yield ""
    for name in ("operators", "steps", "loaders"):
        file = out / f"{name}.json"
        if file.is_file() and file.stat().st_size:
            for benchmark in json.loads(file.read_text())["benchmarks"]:
                if "candidates" in benchmark["extra_info"]:
                    yield line(benchmark["extra_info"])[:width]
    training = out / "training" / "training.json"
    if training.is_file():
        yield f"training: {json.dumps(json.loads(training.read_text()))}"
    for outcome in outcomes:
        yield f"{outcome.stage:10} {outcome.result}"


if __name__ == "__main__":
    sys.exit(main())
