"""A result of the benchmark suite as it writes one, small and made up."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Json = dict[str, Any]


def quartiles(median: float) -> list[float]:
    return [0.98 * median, median, 1.03 * median]


def candidate(role: str, parts: dict[str, float], **more: Any) -> Json:
    return {"role": role, "milliseconds": {part: quartiles(t) for part, t in parts.items()}, **more}


def case(operator: str, name: str, dtype: str, direction: str, candidates: Json, **more: Any) -> Json:
    """A case: the ratios follow from the candidates' medians."""
    ours = candidates["ours"]["milliseconds"]
    ratios = {
        other: {part: quartiles(times[1] / ours[part][1]) for part, times in found["milliseconds"].items()}
        for other, found in candidates.items()
        if other != "ours"
    }
    described = {"operator": operator, "case": name, "dtype": dtype, "direction": direction, "candidates": candidates}
    return described | {"ratios": ratios} | more


def suite() -> Json:
    """Of a CPU: an operator with all that there can be, a loss with a series, and a case with nothing optional."""
    upsampling = case(
        "upsample_gated_conv2d",
        "16x128x16x16 to 64, 3x3",
        "fp32",
        "training",
        {
            "ours": candidate(
                "ours", {"both": 12.345, "forward": 4.0, "backward": 8.2}, form="torch/phases", peak_bytes=43_200_000,
                rounds=21,
            ),
            "reference": candidate("alternative", {"both": 30.1, "forward": 9.0}, peak_bytes=98_700_000),
            "torch.compile": candidate("alternative", {"both": 22.7, "forward": 7.0, "backward": 11.3}),
            "GLU after upsampling": candidate("alternative", {"both": 31.9}, peak_bytes=101_000_000),
            "torch/transposed": candidate("implementation", {"both": 15.5}, peak_bytes=50_000_000, rounds=21),
        },
        headline=True,
        work={"images": 16},
        unavailable={"triton": "Triton has no cpu backend here; it needs a CUDA device"},
        errors={"ours": [1.2e-7, 3.4e-7], "torch.compile": [2.2e-7]},
        roofline={"bytes": 5.5e6, "flops": 1.2e9, "milliseconds": 6.1, "bound_by": "compute"},
    )  # fmt: skip
    losses = [
        case(
            "region_keyword_loss",
            f"batch {batch}, R=64 T=16 D=256",
            "fp32",
            "training",
            {
                "ours": candidate("ours", {"both": 0.021 * batch**2}, peak_bytes=1000 * batch),
                "reference": candidate("alternative", {"both": 0.005 * batch**2.5}, peak_bytes=400 * batch**2),
            },
            series={"name": "region_keyword_loss over the batch", "axis": "batch", "value": batch},
        )
        for batch in (16, 32, 64)
    ]
    bare = case(
        "text_cache",
        "256 rows",
        "",
        "step",
        {"ours": candidate("ours", {"step": 0.0951}), "torch.compile": candidate("alternative", {"step": 0.0888})},
    )
    return {
        "device": {
            "name": "AMD EPYC, 2 cores",
            "slug": "amd-epyc-2-cores",
            "type": "cpu",
            "versions": {"fastt2i": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "triton": "3.9.0"},
            "copy_bytes_per_second": 2.1e10,
            "flops_per_second": {"fp32": 1.1e11, "bf16": 9e10},
        },
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "measured": "2026-11-25T21:30:15.123456+00:00",
        "cases": [upsampling, *losses, bare],
    }


@pytest.fixture(scope="session")
def original() -> Json:
    """Not to be changed."""
    return suite()


@pytest.fixture
def content(original: Json) -> Json:
    """To be changed by a test."""
    return copy.deepcopy(original)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a result; returns its path."""

    def write(content: Any, name: str = "result.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write
