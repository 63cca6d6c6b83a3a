"""Every layout that people have trains as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastt2i import evaluate, train
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


def test_another_column_and_format(tiny: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match="is read as `shapes`, where captions are in no column"):
        train.main([*tiny, "--data.text-column", "title", *out])
    with pytest.raises(UserError, match="the layout `cub` is CUB_200_2011"):
        train.main([*tiny, "--data", str(tmp_path), "--data.format", "cub", *out])
    with pytest.raises(UserError, match="nor is it laid out as `cub`, `coco`, `flowers`, `parquet` or `webdataset`"):
        train.main([*tiny, "--data", str(tmp_path), *out])
