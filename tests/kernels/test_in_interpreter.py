"""Runs the kernels' tests in Triton's interpreter, which has to be chosen before a kernel is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*_kernel.py"))
#: One shape of every operator in float32, values and derivatives; a name that is no test ends pytest with an error.
ONE_SHAPE = [
    "test_gate_kernel.py::test_values_and_derivatives[channels_last-dtype0-leaky_relu]",
    "test_gated_conv_kernel.py::test_every_activation_with_and_without_bias[leaky_relu]",
    "test_gated_conv_kernel.py::test_every_convolution[triton/64x32x32w4s4-True-dtype0]",
    "test_gated_conv_kernel.py::test_upsampling_of_every_size[triton/64x32x32w4s4-dtype0]",
    "test_contrastive_loss_kernel.py::test_values_and_derivatives[classes-33]",
    "test_transposed_weight_kernel.py::test_kernels_and_their_gradient[size2-nchw-dtype2]",
    "test_modulated_gate_kernel.py::test_second_derivatives[True-silu]",
    "test_gated_block_kernel.py::test_second_derivatives[0.2-silu]",
    "test_leaky_shortcut_kernel.py::test_second_derivatives[True-True]",
    "test_region_keyword_kernel.py::test_scores_and_gradients[shape1-dtype1-xmc]",
    "test_region_keyword_kernel.py::test_scores_and_gradients[shape1-dtype1-damsm]",
]
#: By file, its tests as they run, and where they write.
Runs = dict[str, tuple[subprocess.Popen[bytes], Path]]

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the run in the interpreter"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the tests run on the GPU"),
]


def start(tests: list[str], output: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """Pytest on these tests of the folder, in the interpreter; killed where the stack ends."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / test) for test in tests)]
    file = stack.enter_context(output.open("wb"))
    process = stack.enter_context(
        subprocess.Popen(command, cwd=HERE.parents[1], env=environment, stdout=file, stderr=file)
    )
    stack.callback(process.kill)
    return process


def check(process: subprocess.Popen[bytes], output: Path) -> int:
    """The number of tests that passed; none failed or was skipped."""
    status, printed = process.wait(), output.read_text()
    assert status == 0, printed
    assert "skipped" not in printed, printed
    passed = re.search(r"(\d+) passed", printed)
    assert passed, printed
    return int(passed[1])


def test_one_shape_of_every_operator(tmp_path: Path) -> None:
    with ExitStack() as stack:
        process = start(ONE_SHAPE, tmp_path / "output", stack)
        assert check(process, tmp_path / "output") == len(ONE_SHAPE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All files at once, for the interpreter keeps one core busy."""
    folder = tmp_path_factory.mktemp("interpreter")
    with ExitStack() as stack:
        yield {file: (start([file], folder / file, stack), folder / file) for file in FILES}


@pytest.mark.full
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_in_every_shape(file: str, runs: Runs) -> None:
    check(*runs[file])
