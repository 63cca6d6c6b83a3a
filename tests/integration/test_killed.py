"""Twenty kills at random moments of each tool: what is run again ends as if nothing had happened, byte for byte."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
KILLS = 20
#: Kills that have to land after the tool has kept something and before it has ended.
IN_THE_MIDDLE = 12

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> int:
    _, said = process.communicate()
    assert process.returncode in (0, 1), said.decode()
    return process.returncode


def kill_at_random_moments(
    start: Callable[[], subprocess.Popen[bytes]],
    clear: Callable[[], None],
    part: Callable[[], float],
    result: Callable[[], dict[str, bytes]],
) -> list[float]:
    """Run to the end, undisturbed; then again and again, killed on the way, and to the end.

    start: begins the tool; clear: removes what it left. part: what share of its work the tool has kept. result: what it
    leaves. Returns the shares that were kept when it was killed.
    """
    end(start())
    whole = result()
    moments = random.Random(0)
    parts = []
    for _ in range(KILLS):
        clear()
        process = start()
        # By what is done, not by the clock, which other processes on the machine may disturb; and some time after that.
        share, moment = moments.uniform(-0.1, 0.95), moments.uniform(0, 0.05)
        while part() < share and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.communicate()
        parts.append(part())
        end(start())
        assert result() == whole
    print("kept when killed:", *(f"{part:.2f}" for part in parts))
    assert sum(0 < part < 1 for part in parts) >= IN_THE_MIDDLE, parts
    return parts


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """600 images that take a while to decode, every fiftieth broken."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for number in range(600):
        file = io.BytesIO()
        image = Image.fromarray(np.roll(noise, number, axis=1)).resize((480, 360), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=85)
        content = file.getvalue()
        (folder / f"{number:03d}.jpg").write_bytes(content[: len(content) // 2] if number % 50 == 7 else content)
        (folder / f"{number:03d}.txt").write_text(f"number {number}\nthe same, {number}\n")
    return folder


@pytest.mark.parametrize("to", [["webdataset", "--shard-samples", "25"], ["folder"]])
def test_packing(photographs: Path, tmp_path: Path, cache: Path, to: list[str]) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"

    def clear() -> None:
        for folder in (out, partial):
            shutil.rmtree(folder, ignore_errors=True)

    def start() -> subprocess.Popen[bytes]:
        if out.exists():  # it had ended when it was killed
            return run("-c", "pass")
        options = ["--image-size", "64", "--workers", "2", "--data", str(photographs), "--out", str(out)]
        return run("-m", "fastt2i.data", "pack", "--to", *to, *options)

    def part() -> float:
        done = len(list(partial.glob("*.tar" if to[0] == "webdataset" else "*.png")))
        return 1.0 if out.exists() else done / (24 if to[0] == "webdataset" else 588)

    def result() -> dict[str, bytes]:
        assert not partial.exists()
        return {path.name: path.read_bytes() for path in out.iterdir()}

    kill_at_random_moments(start, clear, part, result)
    if to[0] == "webdataset":
        assert len(json.loads((out / "manifest.json").read_text())["left_out"]) == 12


def test_verifying(photographs: Path, tmp_path: Path, cache: Path) -> None:
    report = tmp_path / "report.jsonl"

    def clear() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        report.unlink(missing_ok=True)

    def start() -> subprocess.Popen[bytes]:
        return run("-m", "fastt2i.data", "verify", "--workers", "2", "--data", str(photographs), "--out", str(report))

    def part() -> float:
        lines = [line for journal in cache.glob("verify/*.journal") for line in journal.read_bytes().splitlines()[1:]]
        return 1.0 if report.exists() else len(lines) * 32 / 600

    def result() -> dict[str, bytes]:
        (journal,) = cache.glob("verify/*.journal")
        return {"report": report.read_bytes(), "journal": journal.read_bytes()}

    kill_at_random_moments(start, clear, part, result)
    assert json.loads(report.read_text().splitlines()[-1])["bad_images"] == 12


CACHE = """
import hashlib, sys, time
from pathlib import Path
import numpy as np, torch
from fastt2i.text.cache import TextCache
from fastt2i.text.features import TextFeatures

class Encoder:
    digest, sentence_dim, max_keywords, stop_words, idf = "d", 8, 3, frozenset(), {}
    def __call__(self, captions):
        time.sleep(0.05)
        bits = np.stack([np.frombuffer(hashlib.sha256(c.encode()).digest(), np.uint8) for c in captions])
        values = torch.from_numpy(bits / 64.0).float()
        keywords = values.reshape(len(captions), 4, 8)[:, :3]
        return TextFeatures(values[:, :8], keywords, keywords[..., 0] > 1)

TextCache.open(Encoder(), [f"caption {n}" for n in range(512 * 40 + 7)], Path(sys.argv[1]), progress=False)
"""


def test_caching(tmp_path: Path) -> None:
    directory = tmp_path / "cache"

    def part() -> float:
        if [path for path in directory.glob("*/mask.npy") if not path.parent.name.startswith(".")]:
            return 1.0
        return sum(path.stat().st_size for path in directory.glob(".*/mask.npy")) / (3 * 512 * 40)

    def result() -> dict[str, bytes]:
        assert not list(directory.glob(".*.partial"))
        return {path.name: path.read_bytes() for path in directory.glob("*/*.npy")}

    kill_at_random_moments(
        lambda: run("-c", CACHE, str(directory)),
        lambda: shutil.rmtree(directory, ignore_errors=True),
        part,
        result,
    )
    assert len(result()) == 4
