"""Every layout that people have trains as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i import evaluate, train
from fastt2i.data.__main__ import main as data
from fastt2i.data.loaders.loader import Batch
from fastt2i.data.loaders.memory import MemoryLoader
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError


def test_a_sample_of_each_layout_trains(
    tiny: list[str], layout: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = layout
    out = tmp_path / "run"
    arguments = ["--data", path, "--train.steps", "20", "--log.every", "10", "--log.samples-every", "20"]
    assert train.main([*tiny, *arguments, "--checkpoint.every", "20", "--out", str(out)]) == 0
    assert "9 images with 18 different captions, 3 held out" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "d_region" in record] == [10, 20]
    assert (out / "quarantine.jsonl").read_text() == ""
    assert evaluate.main(["--model", str(out), "--data", path]) == 0
    assert "undecodable_images   0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_images_and_captions(
    tiny: list[str],
    layout: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number_in: Callable[..., int],
) -> None:
    """By content: the number that each image of a step shows is the one that its caption says."""
    seen: dict[str, list[list[tuple[int, str]]]] = {}
    for name, parts in {"whole": [20], "resumed": [10, 20]}.items():
        seen[name] = []
        with monkeypatch.context() as patched:
            note_batches(patched, seen[name], number_in)
            for steps in parts:
                arguments = ["--data", layout[1], "--train.steps", str(steps), "--checkpoint.every", "10"]
                out = ["--out", str(tmp_path / name), *(["--resume"] if steps > parts[0] else [])]
                assert train.main([*tiny, *arguments, "--log.samples-every", "20", *out]) == 0
    assert len(seen["whole"]) == 20 and seen["resumed"] == seen["whole"]
    orders = [number for step in seen["whole"] for number, _ in step]
    assert sorted(set(orders)) == list(range(9)) and orders[:9] != orders[9:18]
    for step in seen["whole"]:
        for number, caption in step:
            assert number_in(caption) == number
    ours, theirs = (tmp_path / name / "model" / "generator.safetensors" for name in seen)
    assert ours.read_bytes() == theirs.read_bytes()


def note_batches(
    patched: pytest.MonkeyPatch, steps: list[list[tuple[int, str]]], number_in: Callable[..., int]
) -> None:
    """Add what each step is given: numbers that images show, with the captions beside them."""
    captions: list[str] = []
    prepare, following = TrainingData.__init__, MemoryLoader.__next__

    def prepared(self: TrainingData, *arguments: object) -> None:
        prepare(self, *arguments)  # type: ignore[arg-type]
        captions[:] = self.captions.captions

    def noted(self: MemoryLoader) -> Batch:
        batch = following(self)
        shown = map(number_in, batch.images.numpy())
        steps.append([(number, captions[int(place)]) for number, place in zip(shown, batch.caption_ids, strict=True)])
        return batch

    patched.setattr(TrainingData, "__init__", prepared)
    patched.setattr(MemoryLoader, "__next__", noted)


def test_packed_shards_train(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, report = str(tmp_path / "shards"), str(tmp_path / "report.jsonl")
    assert data(["pack", "--out", shards, "--limit", "40", "--shard-samples", "16", "--image-size", "32"]) == 0
    assert data(["verify", "--data", shards, "--out", report, "--workers", "0"]) == 0
    assert train.main([*tiny, "--data", shards, "--train.steps", "4", "--out", str(tmp_path / "run")]) == 0
    assert f"data: {shards}: " in capsys.readouterr().out


def test_another_column_and_format(tiny: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match="is read as `shapes`, where captions are in no column"):
        train.main([*tiny, "--data.text-column", "title", *out])
    with pytest.raises(UserError, match="the layout `cub` is CUB_200_2011"):
        train.main([*tiny, "--data", str(tmp_path), "--data.format", "cub", *out])
    with pytest.raises(UserError, match="nor is it laid out as `cub`, `coco`, `flowers`, `parquet` or `webdataset`"):
        train.main([*tiny, "--data", str(tmp_path), *out])
