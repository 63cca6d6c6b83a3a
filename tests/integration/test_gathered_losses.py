"""Batches of several processes are one batch: the same losses and, after averaging over them, the same gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration import ranks

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/integration/ranks.py"

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What four processes found, two of them also as a group of their own."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(folder)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks.WORLD)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks.WORLD)]


@pytest.mark.parametrize("case", ranks.CASES, ids=lambda c: f"{c.variant}-{c.impl}-{'+'.join(map(str, c.sizes))}")
def test_losses_and_gradients_are_those_of_one_process(found: list[dict[str, object]], case: object) -> None:
    truth = ranks.alone(case)
    for of_rank in found[: len(case.sizes)]:
        for ours, right in zip(of_rank[str(case)], truth, strict=True):
            assert right.norm() > 0
            assert (ours - right).norm() <= 1e-5 * right.norm()


def test_batches_that_do_not_fit_together_are_one_sentence_on_every_rank(found: list[dict[str, object]]) -> None:
    for of_rank in found:
        sizes, dtypes, exclude, shape = of_rank["mistakes"]
        assert "the ranks have features of sizes [3, 4, 5, 6]" in sizes
        assert "of torch.float32, torch.float64; size and dtype must be the same on every rank" in dtypes
        assert "some ranks gave exclude and others did not" in exclude
        assert "exclude has shape (2, 2); it must be (2, 8), a row for each image and a column for each" in shape
    assert all("a process group that this process is not in" in of_rank["outside"] for of_rank in found[2:])
