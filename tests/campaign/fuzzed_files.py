"""Files of nonsense through the readers: each is read, or refused with one sentence; quickly, and in its own folder.

Hypothesis makes them. Each batch has a process of its own, which a processor's second, a gibibyte or an abort would
end; what is opened beyond the folder of the files, an interpreter's hook sees.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from fastt2i.devices.allocator import give_back_freed_memory
from fastt2i.errors import UserError
from tests.campaign.parts import Outcome, Part
from tests.campaign.processes import Fault, Process
from tests.layouts import shown

#: Bounds of one input: processor's seconds, seconds, bytes of memory beyond what the process had before.
CPU_SECONDS, SECONDS, MEMORY = 10.0, 120.0, 2**29
#: Bytes of addresses beyond which a process gets no memory at all, so that no other one has to suffer.
ADDRESSES = 2**32


@dataclass(frozen=True)
class Target:
    """A reader: what it is given, and how it is called, with a folder of its own and that input."""

    name: str
    planned: int
    inputs: st.SearchStrategy[Any]
    read: Callable[[Path, Any], object]


class FuzzedFiles(Part):
    name, unit, planned, share = "fuzz", "input", 100_000, 0.34
    ROUNDS = 10

    def __init__(self, targets: Sequence[Target] = ()) -> None:
        """targets: the readers; all by default."""
        self._targets = targets

    def prepare(self, folder: Path) -> None:
        from tests.campaign.fuzz_targets import all_targets

        self._folder = folder
        self._targets = self._targets or all_targets(folder / "inputs")
        # 0: inputs tried, 1: inputs that were refused; the process may end at any of them.
        self._counts = memoryview(mmap.mmap(-1, 16)).cast("q")

    def trial(self, number: int, moments: random.Random) -> Outcome:
        target = self._targets[number % len(self._targets)]
        self._counts[0] = self._counts[1] = 0
        log, seed = self._folder / "output.txt", moments.getrandbits(63)
        ended = Process(lambda: self._try(target, seed), log).wait(3600)
        tried, refused = self._counts
        if ended.status:
            kept = self._keep_input(number, target)
            why = f"it ended by signal {-ended.status}: " if ended.status < 0 else ""
            raise Fault(f"{target.name}, input {tried}, kept in {kept}: {why}{ended.tail()}")
        return Outcome(tried, Counter({f"{target.name}, refused": refused, f"{target.name}, read": tried - refused}))

    def _keep_input(self, number: int, target: Target) -> Path:
        kept = self.failures / f"{number}-{target.name}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self._folder / "case", kept, symlinks=True)
        return kept

    def _try(self, target: Target, seed: int) -> int:
        case = self._folder / "case"
        cache = Path(os.environ["XDG_CACHE_HOME"])
        watch = Watch([case / "given", self._folder / "inputs", cache])
        secret = shown(7, "PNG")
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + ADDRESSES, resource.RLIM_INFINITY))
        gc.collect()  # what the parent has left must not be freed while an input takes memory

        def attempt(value: Any) -> None:
            shutil.rmtree(case, ignore_errors=True)
            (case / "given").mkdir(parents=True)
            (case / "secret.png").write_bytes(secret)
            self._counts[0] += 1
            give_back_freed_memory()  # else this input would take what others have left, unseen
            Path("/proc/self/clear_refs").write_text("5")  # the greatest resident memory is counted from here
            before = _resident()
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                with watch:
                    target.read(case / "given", value)
            except UserError as error:
                self._counts[1] += 1
                if "\n" in str(error).strip():
                    raise AssertionError(f"the refusal has several lines: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            if watch.beyond:
                raise AssertionError(f"it looked at {watch.beyond[0]}")
            if _resident() - before > MEMORY:
                raise AssertionError(f"it has taken {(_resident() - before) >> 20} MiB")

        decorated = hypothesis.seed(seed)(
            hypothesis.settings(
                max_examples=max(1, target.planned // self.ROUNDS),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )(hypothesis.given(target.inputs)(attempt))
        )
        try:
            decorated()
        except Exception:
            traceback.print_exc()
            return 1
        return 0


class Watch:
    """Sees what is opened, listed or started beyond some folders while it is entered."""

    EVENTS = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.truncate", "os.mkdir"}
    NEVER = {"subprocess.Popen", "os.system", "os.exec", "socket.connect", "pickle.find_class", "ctypes.dlopen"}

    def __init__(self, folders: list[Path]) -> None:
        allowed = [*folders, sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/proc/self", "/dev/null"]
        self._allowed = (*(os.path.join(os.path.realpath(folder), "") for folder in allowed), "/dev/null")
        self._on = False
        self.beyond: list[str] = []
        sys.addaudithook(self._see)

    def __enter__(self) -> Watch:
        self.beyond, self._on = [], True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in self.NEVER:
            self.beyond.append(f"{event} {arguments[0]!r}")
        elif event in self.EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            if not os.path.join(os.path.realpath(path), "").startswith(self._allowed):
                self.beyond.append(f"{event} {path}")


def _resident() -> int:
    """The greatest resident memory, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _addresses() -> int:
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
