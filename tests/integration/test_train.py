"""`python -m fastt2i.train` from its options to its files, and through kills, signals and mistakes."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastt2i import train
from fastt2i.errors import UserError

ROOT = Path(__file__).parents[2]
WEIGHTS = ("generator.safetensors", "discriminator.safetensors")


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / "model" / name).read_bytes() for name in WEIGHTS}


@pytest.fixture(scope="module")
def whole_run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main([*tiny, "--out", str(out)]) == 0
    return out


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastt2i.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_leaves_what_it_promises(whole_run: Path) -> None:
    files = {str(p.relative_to(whole_run)) for p in whole_run.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "quarantine.jsonl",
        "samples/step-00000006.png",
        "samples/attention-00000006.png",
        "samples/variations-00000006.png",
        "checkpoints/step-00000004/state.json",
        "checkpoints/step-00000006/state.json",
        "model/generator.safetensors",
        "model/discriminator.safetensors",
        "model/config.json",
        "model/README.md",
        "model/samples.png",
        "model/variations.png",
    } <= files
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    losses = [r for r in records if "d_adversarial" in r]
    assert [r["step"] for r in losses] == [1, 2, 3, 4, 5, 6]
    assert all(r["images_per_second"] > 0 for r in losses)
    assert all(r["g_mode_seeking"] >= 0 for r in losses)
    assert 0 <= records[-1]["accuracy_all"] <= 1 and 0 <= records[-1]["r_precision"] <= 1
    assert records[-1]["spread"] > 0 and records[-1]["spread_of_real"] > 0
    card = (whole_run / "model" / "README.md").read_text()
    assert "CN115619903A" in card and "- spread of real: " in card


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a virtual environment in it, as `make train` makes it."""
    environment, folder = Path(sys.prefix), tmp_path / "a project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (folder / ".venv" / "lib").symlink_to(environment / "lib")
    (folder / ".venv" / "pyvenv.cfg").write_text((environment / "pyvenv.cfg").read_text())
    return folder


@pytest.mark.skipif(not Path(sys.prefix, "pyvenv.cfg").is_file(), reason="needs a virtual environment to link to")
def test_the_command_at_the_end_of_a_run_works_as_printed(tiny: list[str], project: Path) -> None:
    """Where the user stands, with the interpreter that was used, and whatever the folder is called."""
    out, environment = "runs/it's mine", os.environ | {"PYTHONPATH": str(ROOT)}
    trained = subprocess.run(
        [".venv/bin/python", "-m", "fastt2i.train", *tiny, "--train.steps", "2", "--out", out],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    *_, introduction, command = trained.stdout.splitlines()
    assert introduction == "try next:" and command.startswith("  .venv/bin/python -m fastt2i.generate --model ")
    tried = subprocess.run(command, shell=True, cwd=project, env=environment, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert (project / out / "generated.png").is_file()


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_resumes_to_the_same_bytes(tiny: list[str], whole_run: Path, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "run"
    arguments = [*tiny, "--out", str(out)]
    with started(arguments) as process:
        wait_for_step(out, random.Random(seed).randint(1, 5), process)
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert train.main([*arguments, "--resume"]) == 0
    assert weights(out) == weights(whole_run)
    steps = [r["step"] for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "d_region" in r]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits(
    tiny: list[str], whole_run: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "run"
    with started([*tiny, "--train.steps", "100000", "--checkpoint.every", "100000", "--out", str(out)]) as process:
        wait_for_step(out, 3, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, (output, errors)
    assert f"stopped by {number.name}" in output and "Traceback" not in errors
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) >= 3


def test_resuming_without_options_takes_those_of_the_run(tiny: list[str], whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train.main([*tiny, "--train.steps", "3", "--out", str(out)])
    assert train.main(["--out", str(out), "--resume", "--train.steps", "6"]) == 0
    assert weights(out) == weights(whole_run)


def test_resuming_on_other_data_is_warned_of(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "digits", ["--out", str(tmp_path / "run")]
    folder.mkdir()
    digits(folder)
    train.main([*tiny, "--data", str(folder), "--train.steps", "2", *out])
    assert train.main([*out, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "all 2 steps are taken" in told and "the data has changed" not in told
    (folder / "0003.txt").write_text("another caption")
    assert train.main([*out, "--resume", "--train.steps", "4"]) == 0
    assert "warning: the data has changed since then" in capsys.readouterr().out


def test_another_seed_gives_other_weights(tiny: list[str], whole_run: Path, tmp_path: Path) -> None:
    train.main([*tiny, "--train.seed", "1", "--out", str(tmp_path / "run")])
    assert weights(tmp_path / "run") != weights(whole_run)


def test_a_dry_run_writes_nothing(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*tiny, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    assert "batch_size: 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def fails(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train.main(arguments)


def test_a_loss_that_is_not_finite_stops_the_run(tiny: list[str], tmp_path: Path) -> None:
    fails(
        [*tiny, "--optim.generator-lr", "1e30", "--log.every", "6", "--out", str(tmp_path / "run")],
        r"the loss [dg]_\w+ is not finite at step [1-3]; the last good checkpoint is|there is no checkpoint yet",
    )


def test_mistakes_are_one_sentence(tiny: list[str], whole_run: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    fails([*tiny, "--data", str(tmp_path / "nowhere"), *out], "nowhere")
    (tmp_path / "empty").mkdir()
    fails([*tiny, "--data", str(tmp_path / "empty"), *out], "empty")
    (tmp_path / "file").write_text("")
    fails([*tiny, "--out", str(tmp_path / "file")], "is a file; choose another --out")
    fails([*tiny, "--out", str(tmp_path / "file" / "run")], "cannot write to the output folder")
    fails([*tiny, "--out", str(whole_run)], "already holds a run; go on with it by --resume, or choose another --out")
    fails([*tiny, "--text.model", str(tmp_path / "no-model"), *out], "no-model")
    fails(["--preset", "huge"], "there is no preset huge; choose one of demo")
    fails([*tiny, "--engine.device", "cuda", *out], "torch sees no GPU here")


def test_a_machine_without_a_compiler_is_told_so_in_one_sentence(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/bin/false",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    sentence = "engine.compile is on, but torch.compile fails here: .*No working C.. compiler.*--engine.compile off$"
    fails([*tiny, "--engine.compile", "on", "--out", str(tmp_path / "run")], sentence)


def test_what_is_decided_of_compiling_is_logged(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--train.steps", "48", "--log.every", "12", "--checkpoint.every", "48"]
    train.main([*tiny, *options, "--loss.penalty", "none", "--out", str(tmp_path / "run")])
    assert capsys.readouterr().out.count("torch.compile is off: what is left takes") == 1
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (record,) = [r for r in records if "compiled" in r]
    assert record["step"] == 24 and record["compiled"] == 0 and record["ms_uncompiled"] > 0


def test_what_was_not_measured_of_compiling_is_open_again_in_a_longer_run(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny, "--out", str(tmp_path / "run")]
    train.main(arguments)
    assert "6 steps are too few to find out whether it pays" in capsys.readouterr().out
    train.main([*arguments, "--resume", "--train.steps", "48", "--log.every", "12"])
    assert "torch.compile is off: what is left takes" in capsys.readouterr().out


def test_a_short_run_can_be_profiled(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading and logging have their names in the trace, too."""
    assert train.main([*tiny, "--profile", "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "profile of 5 steps from 0 on, 2 with the penalty" in told and "waiting for inputs" in told
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events if event.get("cat") == "user_annotation"}
    assert {"load", "generate", "discriminator", "generator update", "log", "save"} <= names


def test_resuming_another_model_is_refused(tiny: list[str], whole_run: Path) -> None:
    before = weights(whole_run)
    changed = [*tiny, "--model.global-dim", "9", "--out", str(whole_run), "--resume"]
    fails(changed, r"has model.global_dim 8, but 9 was asked for; resume with the same model")
    assert weights(whole_run) == before


def test_the_config_file_of_a_refused_resume_is_untouched(tiny: list[str], whole_run: Path) -> None:
    before = (whole_run / "config.yaml").read_bytes()
    fails([*tiny, "--model.global-dim", "9", "--out", str(whole_run), "--resume"], "global_dim")
    assert (whole_run / "config.yaml").read_bytes() == before


FULL_DISK = """
import resource, signal, sys
from fastt2i import cli, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from fastt2i.engine import trainer
log_and_save = trainer.Trainer._log_and_save
def patched(self, *arguments):
    if self.progress.step == 3:
        limit()
    log_and_save(self, *arguments)
trainer.Trainer._log_and_save = patched
sys.exit(cli.run(lambda: train.main(sys.argv[2:])))
"""


@pytest.mark.parametrize(("room", "what"), [(20_000, "cannot save a checkpoint"), (100, "the run cannot be kept")])
def test_a_disk_that_fills_up_leaves_a_run_that_can_go_on(
    tiny: list[str], whole_run: Path, tmp_path: Path, room: int, what: str
) -> None:
    """With room for a little the checkpoint is what fails, with none it is the log."""
    out = tmp_path / "run"
    arguments = [*tiny, "--out", str(out)]
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(room), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and what in result.stderr and "step-00000002" in result.stderr, (
        result.stderr
    )
    assert train.main([*arguments, "--resume"]) == 0
    assert weights(out) == weights(whole_run)


def digits(folder: Path, per_digit: int = 6) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pictures = load_digits()
    taken = dict.fromkeys(range(10), 0)
    for number, (pixels, label) in enumerate(zip(pictures.images, pictures.target, strict=True)):
        if taken[label] < per_digit:
            taken[label] += 1
            Image.fromarray((pixels * 15.9).astype("uint8")).save(folder / f"{number:04d}.png")
            (folder / f"{number:04d}.txt").write_text(f"a handwritten digit {names[label]}\n")


def test_a_folder_of_other_pictures_trains(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    digits(folder)
    (folder / "0000.png").write_bytes(b"")
    (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:40])
    out = tmp_path / "run"
    assert train.main([*tiny, "--data", str(folder), "--out", str(out)]) == 0
    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(entry["where"]).name for entry in quarantine} == {"0000.png", "0001.png"}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert "accuracy_all" not in records[-1]


LOADERS = ["memory", "pillow", "dali"]


def loader_options(name: str) -> list[str]:
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    return [] if name == "memory" else ["--data.loader", name, "--data.workers", "1"]


@pytest.mark.parametrize("loader", LOADERS)
def test_bad_images_are_counted_everywhere_and_through_a_resume(
    tiny: list[str], tmp_path: Path, loader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "digits", tmp_path / "run"
    folder.mkdir()
    digits(folder)
    bad = sorted(folder.glob("*.png"))[5:40:12]
    for image in bad:
        image.write_bytes(image.read_bytes()[:70])
    arguments = [*tiny, "--data", str(folder), "--data.heldout", "0", "--data.max-bad-fraction", "0.2"]
    arguments += [*loader_options(loader), "--out", str(out)]
    assert train.main([*arguments, "--train.steps", "8"]) == 0
    first = capsys.readouterr().out
    assert f"loader: {loader}; " in first
    assert train.main([*arguments, "--train.steps", "16", "--resume"]) == 0
    second = capsys.readouterr().out
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    counts = [record["quarantined"] for record in records if "d_region" in record]
    assert len(counts) == 16 and counts == sorted(counts) and counts[-1] == len(bad)
    assert all(f"{number} images could not be decoded" in told for told, number in ((first, counts[7]), (second, 3)))
    assert f"{len(bad)} bad images" in second
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["where"] for entry in entries} == {image.name for image in bad}
    whole = tmp_path / "whole"
    assert train.main([*arguments[:-1], str(whole), "--train.steps", "16"]) == 0
    assert weights(out) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_ten_thousand_images_of_which_three_per_cent_are_broken(
    tiny: list[str], tmp_path: Path, loader: str, damages: dict[str, tuple[Callable[[bytes], bytes], str]]
) -> None:
    """The run ends; every broken image is in the quarantine with its reason, and none of the good ones is."""
    folder, out, reasons = tmp_path / "images", tmp_path / "run", {}
    folder.mkdir()
    kinds, captions = list(damages.values()), []
    for number in range(10_000):
        file, name = io.BytesIO(), f"{number:05d}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=80)
        content = file.getvalue()
        if number % 100 in (3, 50, 71):
            damage, reasons[name] = kinds[len(reasons) % len(kinds)]
            content = damage(content)
        (folder / name).write_bytes(content)
        captions.append(json.dumps({"file_name": name, "text": f"a {'large' if number % 2 else 'small'} circle"}))
    (folder / "metadata.jsonl").write_text("\n".join(captions))
    options = ["--data.heldout", "0", "--train.batch-size", "100", "--train.steps", "100", "--log.every", "25"]
    arguments = [*tiny, *options, "--checkpoint.every", "50", "--data", str(folder), *loader_options(loader)]
    assert train.main([*arguments, "--out", str(out)]) == 0
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    found = {entry["where"]: entry["what"] for entry in entries}
    assert len(reasons) == 300 and len(entries) == len(found)
    assert found.keys() == reasons.keys()
    assert [name for name, reason in reasons.items() if not re.search(reason, found[name])] == []
