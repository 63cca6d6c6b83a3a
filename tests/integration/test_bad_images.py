"""A run that ends because too many images are bad leaves the list of them, whole, and names it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i import train
from fastt2i.config import TrainConfig
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.errors import UserError

ROOT = Path(__file__).parents[2]
LOADERS = {
    "memory": [],
    "pillow": ["--data.loader", "pillow", "--data.workers", "0"],
    "dali": ["--data.loader", "dali", "--data.workers", "1"],
}


@pytest.fixture
def folder(tmp_path: Path, image_of: Callable[..., bytes]) -> Path:
    """Forty images, and a caption file without one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.jpg").write_bytes(image_of(number % 10))
        (folder / f"{number:02d}.txt").write_text(f"a red circle {number}")
    (folder / "alone.txt").write_text("a blue circle")
    return folder


def damage(folder: Path, samples: list[int]) -> set[str]:
    """Cut these images short; returns what the quarantine has to list."""
    for sample in samples:
        image = folder / f"{sample:02d}.jpg"
        image.write_bytes(image.read_bytes()[:200])
    return {"alone.txt", *(f"{sample:02d}.jpg" for sample in samples)}


def listed(out: Path) -> list[str]:
    return [json.loads(line)["where"] for line in (out / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loader", LOADERS)
def test_one_process(tiny: list[str], folder: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    out, bad = tmp_path / "run", damage(folder, list(range(30)))
    arguments = [*tiny, *LOADERS[loader], "--data", str(folder), "--data.heldout", "0", "--train.batch-size", "8"]
    sentence = f"images of .* cannot be decoded, more than the fraction 0.05 .*; {out}/quarantine.jsonl lists them"
    with pytest.raises(UserError, match=sentence) as caught:
        train.main([*arguments, "--out", str(out)])
    found = listed(out)
    assert len(found) == len(set(found)) and set(found) <= bad and "alone.txt" in found
    told = re.match(r"(\d+) of (\d+) images", str(caught.value))
    assert told and len(found) - 1 == int(told[1])


@pytest.mark.slow
def test_two_processes_are_judged_together(tiny: list[str], folder: Path, tmp_path: Path) -> None:
    """In an epoch of five steps one finds two bad images, as many as are allowed, and the other one."""
    table = folder_dataset(folder, "all").caption_table()
    settings = {"batch_size": 8, "seed": TrainConfig().seed, "flip": False, "world_size": 2}
    seen = [Sampler(table, rank=rank, **settings).plan(step).samples for rank in range(2) for step in range(5)]
    out, bad = tmp_path / "run", damage(folder, [int(seen[0][0]), int(seen[3][1]), int(seen[7][2])])
    arguments = [*tiny, *LOADERS["pillow"], "--data", str(folder), "--data.heldout", "0", "--train.batch-size", "8"]
    arguments += ["--train.steps", "50", "--log.every", "5", "--checkpoint.every", "50", "--out", str(out)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastt2i.train"]
    ended = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (sentence,) = re.findall(r"fastt2i: error: .*", ended.stderr)
    assert re.search(f"3 of 40 images of .* cannot be decoded, .*; {out}/quarantine.jsonl lists them", sentence)
    assert sorted(listed(out)) == sorted(bad)
