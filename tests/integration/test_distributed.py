"""`torchrun -m fastt2i.train`: several processes are one run, and end as one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
#: Every process computes with one thread, as torchrun has it: how many there are decides the order of sums.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# With the hinge loss the gradients of some biases sum to 0 at first, and Adam steps by the sign of their rounding.
EXACT = ["--train.precision", "fp32", "--train.batch-size", "8", "--loss.adversarial", "nonsaturating"]
QUIET = ["--log.samples-every", "1000"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def command(ranks: int, arguments: Sequence[str], *launch: str) -> list[str]:
    program = ["-m", "fastt2i.train", *arguments]
    if not ranks:
        return [sys.executable, *program]
    meeting = ["--nproc-per-node", str(ranks), *(launch or ["--master-port", str(free_port())])]
    return [sys.executable, "-m", "torch.distributed.run", *meeting, *program]


def run(ranks: int, arguments: Sequence[str], *launch: str) -> subprocess.CompletedProcess[str]:
    """A run by `ranks` processes; without torchrun for 0."""
    return subprocess.run(
        command(ranks, arguments, *launch), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def succeeds(ranks: int, arguments: Sequence[str], *launch: str) -> str:
    result = run(ranks, arguments, *launch)
    assert result.returncode == 0, (result.stdout, result.stderr)
    return result.stdout


@contextmanager
def started(ranks: int, arguments: Sequence[str], *launch: str) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(ranks, arguments, *launch), cwd=ROOT, env=ENVIRONMENT, **pipes)
    try:
        yield process
    finally:
        for worker in workers(process).values():
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.communicate()


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of torchrun's processes by rank; empty until all are there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = {}
    for child in children.read_text().split() if children.exists() else []:
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [v.removeprefix(b"RANK=") for v in variables if v.startswith(b"RANK=")]
        if rank:
            found[int(rank[0])] = int(child)
    return found


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while step not in {record["step"] for record in records(out)}:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(out: Path) -> list[dict[str, float]]:
    metrics = out / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The two networks of the model folder, each as one vector in float64."""
    from safetensors.torch import load_file

    files = {name: load_file(out / "model" / f"{name}.safetensors") for name in ("generator", "discriminator")}
    return {name: torch.cat([t.double().flatten() for t in tensors.values()]) for name, tensors in files.items()}


def assert_same_run(ours: Path, truth: Path, bound: float) -> None:
    """Losses of every step and the weights at the end; a loss near 0 is a difference of parts of about 1."""
    told, right = ([r for r in records(out) if "d_region" in r] for out in (ours, truth))
    assert [r["step"] for r in told] == [r["step"] for r in right] != []
    for record, true in zip(told, right, strict=True):
        for name in (name for name in true if name.startswith(("d_", "g_"))):
            assert abs(record[name] - true[name]) <= bound * max(1.0, abs(true[name])), (true["step"], name)
    for vector, true_vector in zip(weights(ours).values(), weights(truth).values(), strict=True):
        assert (vector - true_vector).norm() <= bound * true_vector.norm()


def assert_same_weights(ours: Path, truth: Path) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(ours).values(), weights(truth).values(), strict=True))


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    return [*tiny, *EXACT, *QUIET]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    succeeds(0, [*arguments, "--out", str(out)])
    return out


def test_two_processes_are_one_run_that_is_told_once(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    output = succeeds(2, [*arguments, "--out", str(both)])
    assert_same_run(both, alone, bound=1e-5)
    assert output.count("model: 32 px") == output.count("step 6/6  samples in") == output.count("done in") == 1
    assert "fp32 on cpu and 1 more" in output
    assert output.count("torch.compile is off: 6 steps are too few") == 1
    # Steps 1 to 6 and the scores after the last.
    assert [r["step"] for r in records(both)] == [1, 2, 3, 4, 5, 6, 6]


def test_parts_of_the_batches_of_two_processes_are_one_run(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """Negatives are gathered over processes and over the parts of each."""
    succeeds(2, [*arguments, "--train.accumulate", "2", "--out", str(tmp_path / "parts")])
    assert_same_run(tmp_path / "parts", alone, bound=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--loss.penalty", "ma_gp", "--model.noise", "conditioning_augmentation"]])
def test_losses_and_weights_after_20_steps_are_those_of_one_process(
    arguments: list[str], tmp_path: Path, options: list[str]
) -> None:
    """Adam divides by the size of a gradient, so that of a weight whose gradient is all rounding the direction is not
    determined; such weights are few and small, which the norm of all weights together allows for."""
    twenty = [*arguments, *options, "--train.steps", "20", "--checkpoint.every", "1000"]
    for ranks in (0, 2, 4):
        succeeds(ranks, [*twenty, "--out", str(tmp_path / str(ranks))])
    assert_same_run(tmp_path / "2", tmp_path / "0", bound=1e-5)
    assert_same_run(tmp_path / "4", tmp_path / "0", bound=1e-5)


@pytest.mark.slow
def test_without_gathering_the_losses_are_others(arguments: list[str], tmp_path: Path) -> None:
    """Half the negatives, so a lower loss: what the run with all of them is told apart by."""
    for name in ("gather", "no-gather"):
        succeeds(2, [*arguments, "--train.steps", "1", f"--loss.{name}", "--out", str(tmp_path / name)])
    all_, half = records(tmp_path / "gather")[0], records(tmp_path / "no-gather")[0]
    assert half["d_sentence"] < 0.9 * all_["d_sentence"] and half["d_region"] < 0.9 * all_["d_region"]
    assert half["d_adversarial"] == pytest.approx(all_["d_adversarial"], rel=1e-6)


@pytest.fixture(scope="module")
def long(arguments: list[str]) -> list[str]:
    return [*arguments, "--train.steps", "30", "--checkpoint.every", "4"]


@pytest.fixture(scope="module")
def whole_run(long: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that nothing disturbs."""
    out = tmp_path_factory.mktemp("distributed") / "whole"
    succeeds(2, [*long, "--out", str(out)])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on(
    long: list[str], whole_run: Path, tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "run"
    with started(2, [*long, "--out", str(out)]) as process:
        wait_for_step(out, random.Random(victim).randint(5, 20), process)
        ranks = workers(process)
        os.kill(ranks[victim], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - killed < 60
    assert process.returncode != 0
    (sentence,) = re.findall(r"fastt2i: error: .*", errors)
    assert f"rank {victim} (process {ranks[victim]} on {socket.gethostname()}) has ended without a word" in sentence
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    succeeds(2, [*long, "--out", str(out), "--resume"])
    assert_same_weights(out, whole_run)
    assert [r["step"] for r in records(out) if "d_region" in r] == list(range(1, 31))


@pytest.mark.slow
def test_a_stopped_rank_ends_all(long: list[str], tmp_path: Path) -> None:
    """A process that is still there but does nothing any more, as on a machine that hangs."""
    out, many = tmp_path / "run", [*long, "--train.steps", "100000"]
    with (
        started(1, [*many, "--out", str(out)], *node(0, port := free_port())) as first,
        started(1, [*many, "--out", str(out)], *node(1, port)) as second,
    ):
        wait_for_step(out, 3, first)
        (stopped,) = workers(second).values()
        os.kill(stopped, signal.SIGSTOP)
        _, errors = first.communicate(timeout=60)
    (sentence,) = re.findall(r"fastt2i: error: .*", errors)
    assert re.search(r"with rank 1 has been silent for 25 seconds", sentence)


def node(number: int, port: int, address: str = "127.0.0.1") -> list[str]:
    """Options of torchrun for one of two nodes."""
    return ["--nnodes", "2", "--node-rank", str(number), "--master-addr", address, "--master-port", str(port)]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(long: list[str], whole_run: Path, tmp_path: Path) -> None:
    """From two to one and to two again; each takes the samples that the others would have."""
    out = ["--out", str(tmp_path / "run")]
    succeeds(2, [*long, *out, "--train.steps", "10"])
    assert "resumed from" in succeeds(0, [*long, *out, "--train.steps", "20", "--resume"])
    assert succeeds(2, [*long, *out, "--resume"]).count("resumed from") == 1
    assert_same_run(tmp_path / "run", whole_run, bound=1e-5)


@pytest.mark.slow
def test_torchrun_starts_anew_from_the_last_checkpoint(long: list[str], whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch = ["--max-restarts", "1", "--master-port", str(free_port())]
    with started(2, [*long, "--out", str(out)], *launch) as process:
        wait_for_step(out, 9, process)
        os.kill(workers(process)[1], signal.SIGKILL)
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, (output, errors)
    assert re.search(r"resumed from \S+step-000000(08|12|16|20|24|28)", output)
    assert_same_weights(out, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--data.memory-mb", "0", "--data.workers", "1", "--data.loader", "pillow"]])
@pytest.mark.parametrize("one", [False, True])
def test_a_signal_stops_all_at_one_step(tiny: list[str], tmp_path: Path, options: list[str], one: bool) -> None:
    """Whether torchrun is told to end, or one process alone."""
    out, steps = tmp_path / "run", ["--train.steps", "100000", "--checkpoint.every", "100000"]
    with started(2, [*tiny, *EXACT, *QUIET, *steps, *options, "--out", str(out)]) as process:
        wait_for_step(out, 3, process)
        os.kill(workers(process)[1] if one else process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert output.count("stopped by SIGTERM at step") == 1, (output, errors)
    assert "fastt2i: error" not in errors
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == records(out)[-1]["step"]


@pytest.mark.slow
def test_what_ends_all_is_told_once(arguments: list[str], tmp_path: Path) -> None:
    def fails(options: list[str], sentence: str) -> None:
        result = run(2, [*arguments, "--out", str(tmp_path / "run"), *options])
        told = re.findall(r"fastt2i: error: .*", result.stderr)
        assert result.returncode != 0 and len(told) == 1 and re.search(sentence, told[0]), result.stderr
        assert "fastt2i/" not in re.sub(r"fastt2i/train.py FAILED", "", result.stderr), result.stderr

    fails(
        ["--train.batch-size", "7"],
        "train.batch_size is 7, which 2 processes cannot share evenly; take a multiple of 2",
    )
    fails(["--data", str(tmp_path / "nowhere")], "nowhere")
    fails(["--engine.device", "cuda"], "torch sees no GPU here")
    fails(["--optim.generator-lr", "1e30", "--log.every", "6"], r"the loss [dg]_\w+ is not finite at step [1-3]")
    fails([], "already holds a run")


NETWORK = "fastt2i-test"


@pytest.fixture
def two_hosts() -> Iterator[list[tuple[list[str], str]]]:
    """Two network namespaces joined by a virtual link: how to run in each, and its address."""
    hosts = [(f"{NETWORK}-{n}", f"10.77.0.{n + 1}") for n in range(2)]
    links = [f"fastt2i-{n}" for n in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name, _ in hosts:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for (name, address), link in zip(hosts, links, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here, which takes root and iproute2: {error}")
    try:
        yield [(["ip", "netns", "exec", name], address) for name, address in hosts]
    finally:
        for name, _ in hosts:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def started_on(hosts: list[tuple[list[str], str]], arguments: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """A run by a process on each host, which meet on the first by rendezvous."""
    port, processes = free_port(), []
    for n, (prefix, address) in enumerate(hosts):
        meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--local-addr", address]
        # Namespaces share the machine's name, by which a host would find out that the endpoint is itself.
        meeting += ["--rdzv-endpoint", f"{hosts[0][1]}:{port}", "--rdzv-conf", f"is_host={int(n == 0)}"]
        line = command(1, arguments, *meeting)
        environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": f"fastt2i-{n}"}
        processes.append(
            subprocess.Popen(
                [*prefix, *line], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        yield processes
    finally:
        for process in processes:
            for worker in workers(process).values():
                os.kill(worker, signal.SIGKILL)
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_two_hosts_are_one_run(arguments: list[str], tmp_path: Path, two_hosts: list[tuple[list[str], str]]) -> None:
    succeeds(0, [*arguments, "--out", str(tmp_path / "alone")])
    with started_on(two_hosts, [*arguments, "--out", str(tmp_path / "run")]) as processes:
        told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert sum(output.count("done in") for output, _ in told) == 1
    assert_same_run(tmp_path / "run", tmp_path / "alone", bound=1e-5)


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_both(
    arguments: list[str], tmp_path: Path, two_hosts: list[tuple[list[str], str]]
) -> None:
    """No process ends and no connection is closed: the other host just does not answer any more."""
    out, steps = tmp_path / "run", ["--train.steps", "100000"]
    with started_on(two_hosts, [*arguments, *steps, "--out", str(out)]) as processes:
        wait_for_step(out, 3, processes[0])
        ranks = [rank_and_pid for process in processes for rank_and_pid in workers(process).items()]
        assert sorted(rank for rank, _ in ranks) == [0, 1]
        subprocess.run(["ip", "-n", f"{NETWORK}-1", "link", "set", "fastt2i-1", "down"], check=True)
        deadline = time.monotonic() + 60
        while any(runs(pid) for _, pid in ranks):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for process in processes:
            process.kill()  # torchrun itself waits for the other host for longer
        told = [process.communicate()[1] for process in processes]
    for errors, (other, _) in zip(told, reversed(ranks), strict=True):  # each misses the one that it does not hear
        (sentence,) = re.findall(r"fastt2i: error: .*", errors)
        assert re.search(rf"with rank {other}\b.* has been silent for 25 seconds", sentence), told


def runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended stays until its parent has looked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
