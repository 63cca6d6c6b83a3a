"""All evidence from a GPU in two commands, most important first, within the minutes given.

    python -m benchmarks.gpu_suite --out DIR [--part 1] [--minutes 7]
    python -m benchmarks.gpu_suite --out DIR --part 2 [--minutes 5]

It needs a checkout, torch, Triton and pytest, and installs nothing. Every finished case is a line of DIR/cases.jsonl at
once; logs and all else are in DIR/evidence.tar.gz, packed anew after each case, so that nothing is lost whenever it is
stopped. The second part runs again what failed in the first, as far as its working folder is still there. With
--device cpu --tiny it shows its own flow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.case_log import FAILED, STOPPED, CaseLog
from benchmarks.gpu.evidence import Evidence
from benchmarks.gpu.supervise import Stage, run_stages
from fastt2i.cli import run
from fastt2i.errors import UserError

#: Minutes of each part.
MINUTES = {1: 7.0, 2: 5.0}
#: Tests that are worth most: graphs, precision, and every kernel with plain shapes.
CORE = ("tests/kernels/test_cuda_graphs.py", "tests/kernels/test_gate_kernel.py")
#: Seconds that a test may take where pytest-timeout is installed.
TEST_LIMIT = 90


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where evidence goes")
    parser.add_argument("--part", type=int, choices=list(MINUTES), default=1)
    parser.add_argument("--minutes", type=float, help="for all stages together; 7 for part 1 and 5 for part 2")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where stages write; a temporary folder by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows the flow")
    parser.add_argument("--tiny", action="store_true", help="a case or two of each stage")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; --device cpu --tiny shows what the suite does")
    work = (arguments.work or Path(tempfile.gettempdir()) / "fastt2i-gpu-suite").resolve()
    evidence = Evidence(arguments.out.resolve(), work)
    options = [f"--device={arguments.device}", *["--tiny"] * arguments.tiny]
    stages = (first_part if arguments.part == 1 else second_part)(evidence, options, arguments.tiny)
    if arguments.tiny:  # on a CPU, perhaps a busy one
        stages = [replace(stage, seconds=10 * stage.seconds) for stage in stages]
    outcomes = run_stages(stages, evidence, 60 * (arguments.minutes or MINUTES[arguments.part]))
    # For the second part, which may be told another folder for its own evidence.
    evidence.cases.path.touch()
    shutil.copy(evidence.cases.path, work / f"cases-{arguments.part}.jsonl")
    return 0 if all(outcome.result != "failed" for outcome in outcomes) else 1


def first_part(evidence: Evidence, options: Sequence[str], tiny: bool) -> list[Stage]:
    """What matters most: that it is right, how long a step takes, and against whom."""
    cores = max(1, min(10, (os.cpu_count() or 2) - 4))
    ahead = [[sys.executable, "-m", "benchmarks.gpu.compile_ahead", f"--share={k}/{cores}"] for k in range(cores)]
    return [
        Stage("ahead", 400, ahead, background=True, left_out="it is a tiny run" if tiny else ""),
        Stage("smoke", 60, [cases("smoke", evidence, options)]),
        Stage("core-tests", 60, [pytest(*(["tests/kernels/test_launch.py"] if tiny else CORE), *GPU_MARKS)]),
        Stage("limits", 20, [cases("limits", evidence, options)]),
        Stage("steps", 150, [cases("steps", evidence, options)]),
        Stage("operators", 75, [cases("operators", evidence, options)]),
        Stage("tests", 400, [pytest("tests/kernels", *GPU_MARKS), pytest("tests", "-m", "gpu")],
              left_out="it is a tiny run" if tiny else ""),
    ]  # fmt: skip


def second_part(evidence: Evidence, options: Sequence[str], tiny: bool) -> list[Stage]:
    """What failed, again; then compiled steps, a training, and what takes longest."""
    ended = CaseLog(evidence.work / "cases-1.jsonl").finished()
    again = sorted({case for (_, case), r in ended.items() if r["state"] in (FAILED, STOPPED) and "::" in case})
    loaders = ["benchmarks/cases/bench_loaders.py", "--benchmark-only", "--device", "cuda", "--minutes", "0.5"]
    dali = find_spec("nvidia") and find_spec("nvidia.dali")
    no_dali = "it is a tiny run" if tiny else "" if dali else "nvidia.dali is not installed"
    return [
        Stage("again", 45, [pytest(*again, "-m", "")], left_out="" if again else "no test of the first part failed"),
        Stage("compiled", 150, [cases("compiled", evidence, options)]),
        Stage("training", 90, [[*cases("training", evidence, options), f"--out={evidence.work / 'training'}"]]),
        Stage("autotune", 120, [cases("autotune", evidence, options)]),
        Stage("loaders", 45, [pytest(*loaders)], left_out=no_dali),
    ]


#: Kernel tests run on a GPU whatever their marks, but for those that take minutes anywhere.
GPU_MARKS = ("-m", "not slow", "--ignore=tests/kernels/test_ahead_of_time.py")


def cases(stage: str, evidence: Evidence, options: Sequence[str]) -> list[str]:
    """The command of a stage of `benchmarks.gpu.cases`."""
    return [sys.executable, "-m", "benchmarks.gpu.cases", stage, f"--log={evidence.cases.path}", *options]


def pytest(*arguments: str) -> list[str]:
    """A command of pytest that writes each finished test down, with as many processes and limits as plug-ins allow."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.case_log"]
    if find_spec("xdist") and (os.cpu_count() or 1) > 4:
        command += ["-n", "12"]
    if find_spec("pytest_timeout"):
        command += [f"--timeout={TEST_LIMIT}"]
    return [*command, *arguments]


if __name__ == "__main__":
    sys.exit(main())
