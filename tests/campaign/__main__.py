"""`python -m tests.campaign`: for an hour everything goes wrong that goes wrong in the field.

Kills, full disks, values that are not finite, ranks that die or stop, flipped bits and files of nonsense. Each part is
given a share of the time, and what it leaves over goes to those that follow. The report is written after every part.
The exit status is 1 where a promise was not kept; a line that makes that trial again is printed and reported.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.campaign import report
from tests.campaign.bit_flips import BitFlips
from tests.campaign.full_disks import FullDisks
from tests.campaign.fuzzed_files import FuzzedFiles
from tests.campaign.kills import Kills
from tests.campaign.not_finite import NotFinite
from tests.campaign.parts import Part, Result, run_part
from tests.campaign.processes import import_everything
from tests.campaign.stopped_ranks import StoppedRanks

PARTS: dict[str, type[Part]] = {
    part.name: part for part in (Kills, FullDisks, NotFinite, StoppedRanks, BitFlips, FuzzedFiles)
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import_everything()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    left = 60.0 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        for place, name in enumerate(arguments.only):
            part = PARTS[name]()
            shares = [PARTS[other].share for other in arguments.only[place:]]
            own = Path(folder, name)
            own.mkdir()
            seconds = left * shares[0] / sum(shares)
            failures = arguments.out.absolute() / "failures"
            results.append(run_part(part, own, failures, arguments.seed, seconds, arguments.trial))
            left -= results[-1].seconds
            told = report.write(arguments.out, results, arguments.seed, arguments.minutes)
    print(told)
    return 1 if any(result.failures for result in results) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=60, help="at most; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of everything random; %(default)s")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--trial", type=int, help="only the trial with this number, which a report names")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    return parser.parse_args(argv)


def _parts(text: str) -> list[str]:
    names = [name for name in PARTS if name in text.split(",")]
    if unknown := set(text.split(",")) - set(names):
        raise argparse.ArgumentTypeError(f"there is no part {unknown.pop()}; there are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
