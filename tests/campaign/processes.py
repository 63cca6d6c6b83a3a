"""Jobs in processes of their own, forked from this one, which has imported everything: a program starts at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from fastt2i import cli

Job = Callable[[], int]

#: Seconds in which any job here ends, however busy the machine is: some fifty times what it takes.
LIMIT = 180.0


class Fault(Exception):
    """Something that is promised was not kept; the message says what."""


class Ended(NamedTuple):
    """How a job ended."""

    status: int
    """Its exit status; negative, the signal that ended it."""
    output: str
    """What it printed, errors among it."""

    def told(self) -> str:
        """Its one sentence of an error.

        Raises:
            Fault: it ended otherwise than by such a sentence.
        """
        sentences = [line for line in self.output.splitlines() if line.startswith("fastt2i: error: ")]
        if self.status == 0 or len(sentences) != 1 or "Traceback" in self.output:
            raise Fault(f"it ended with status {self.status} and not with one sentence of an error: {self.tail()}")
        return sentences[0]

    def succeeded(self) -> Ended:
        """Itself. Raises Fault: it has failed."""
        if self.status != 0 or "Traceback" in self.output:
            raise Fault(f"it ended with status {self.status}: {self.tail()}")
        return self

    def tail(self) -> str:
        """The last lines of what it printed."""
        return "\n".join(line[:300] for line in self.output.splitlines()[-40:])


class Process:
    """A job that runs, in a session of its own.

    Args:
        job: gives the exit status.
        log: file that takes what it prints.
        environment: variables that only it has.
    """

    def __init__(self, job: Job, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        log.unlink(missing_ok=True)
        self._status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(job, log, environment or {})

    def wait(self, seconds: float = LIMIT) -> Ended:
        """Wait for its end.

        Raises:
            Fault: that did not come in so many seconds.
        """
        until = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > until:
                self.kill()
                raise Fault(f"it had not ended after {seconds:.0f} s: {self.ended().tail()}")
            time.sleep(0.002)
        return self.ended()

    def has_ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._end_group()
        return self._status is not None

    def kill(self) -> None:
        """Kill it as the system does where memory ends: it is gone at once, and its children find out themselves."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        self._end_group()

    def ended(self) -> Ended:
        assert self._status is not None
        return Ended(self._status, self._log.read_text(errors="replace") if self._log.exists() else "")

    def _end_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def run(job: Job, log: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a job to its end. Raises Fault: it hangs."""
    return Process(job, log, environment).wait()


def program(name: str, *arguments: object) -> Job:
    """A command of `fastt2i` with its arguments."""
    module = importlib.import_module(cli.COMMANDS[name][0])
    return lambda: cli.run(lambda: module.main([str(argument) for argument in arguments]))


def patch_call(
    owner: Any,
    name: str,
    call: int,
    before: Callable[[Any, Sequence[Any]], Any] | None = None,
    after: Callable[[Any, Sequence[Any]], Any] | None = None,
) -> None:
    """Have a function do something more at one of its calls."""
    function, calls = getattr(owner, name), 0

    def patched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        now, calls = calls == call, calls + 1
        if now and before:
            before(None, arguments)
        result = function(*arguments, **named)
        return after(result, arguments) if now and after else result

    setattr(owner, name, patched)


def import_everything() -> None:
    """Load what programs import while they run, and nothing that starts a thread."""
    import torch
    import torch.distributed

    from fastt2i.engine.logging import run_logger
    from fastt2i.files.atomic import replace_file

    for name in (
        *("fastt2i.engine.build", "fastt2i.engine.distributed.ranks", "fastt2i.engine.scoring.model_evaluation"),
        *("fastt2i.pipeline", "fastt2i.image_folder", "fastt2i.data.tools.pack_shards", "fastt2i.data.tools.verify"),
        *("transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert", "matplotlib.pyplot"),
        *("pyarrow.parquet", "torchmetrics.image.kid", "safetensors.torch"),
    ):
        importlib.import_module(name)
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread would be missing in a forked process
    # Drawing curves takes half of the time of a run of some steps, and is no more than one of its many writes.
    run_logger.save_curves = lambda records, path, scored: replace_file(path, b"curves")  # type: ignore[assignment]


def _run(job: Job, log: Path, environment: Mapping[str, str]) -> None:
    """What the forked process does; it never returns."""
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        # The lock of bars is one of all processes that are forked: one that is killed with it would leave it locked.
        tqdm.set_lock(threading.RLock())
        status = job()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
