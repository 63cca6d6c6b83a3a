"""Ranks that are stopped, as by SIGSTOP or Ctrl-Z, or that die at the end: a sentence says so. All together go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_distributed import free_port

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.quick

WATCHING = """
import os, sys, time
import torch.distributed as dist
from fastt2i.engine.distributed import heartbeat
from fastt2i.engine.distributed.heartbeat import Heartbeat, Member
heartbeat.TIMEOUT_SECONDS, heartbeat.POLL_SECONDS, heartbeat.PAUSE_SECONDS = 3.0, 0.1, 2.0
other, port, seconds = sys.argv[1:]
store = dist.PrefixStore("here", dist.TCPStore("127.0.0.1", int(port), 1, True))
members = [Member(0, 0, "here", os.getpid()), Member(1, 0, "here", int(other))]
watch = Heartbeat(store, members, 0, "here")
print("a progress bar", end="", file=sys.stderr, flush=True)
print("ready", flush=True)
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    time.sleep(0.1)
watch.close()
print("went on")
"""


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """The other rank."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.communicate()


def watching(other: int, seconds: float) -> subprocess.Popen[str]:
    """Rank 0, which watches the other for some seconds."""
    command = [sys.executable, "-c", WATCHING, str(other), str(free_port()), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_stopped_rank_ends_the_others(other: subprocess.Popen[bytes]) -> None:
    process = watching(other.pid, 120)
    other.send_signal(signal.SIGSTOP)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 1 and output == ""
    sentence = f"fastt2i: error: rank 1 (process {other.pid} on here) has been stopped for 3 seconds; all ranks end"
    assert errors.splitlines()[1].startswith(sentence)


def test_ranks_that_were_stopped_together_go_on(other: subprocess.Popen[bytes]) -> None:
    """The first that goes on finds the other still stopped, and hears it later."""
    process = watching(other.pid, 9)
    for rank in (process, other):
        rank.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    other.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output, errors) == (0, "went on\n", "a progress bar")


LEAVING = """
import os, signal, sys
from fastt2i.cli import run
from fastt2i.engine.distributed.rendezvous import join

def main():
    with join() as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

sys.exit(run(main))
"""


def test_a_rank_that_dies_while_the_others_leave() -> None:
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    _, errors = ranks[0].communicate(timeout=100)
    ranks[1].communicate(timeout=100)
    assert ranks[0].returncode == 1 and "Traceback" not in errors
    assert f"rank 1 (process {ranks[1].pid}" in errors and "has ended without a word" in errors
