"""Starting is quick: what is heavy is imported when it is needed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "triton", "transformers", "numpy", "PIL", "nvidia", "matplotlib"}
#: What drawing a picture on a CPU needs none of. Together these take longer to import than all that it needs.
NOT_FOR_DRAWING = {"transformers", "huggingface_hub", "triton", "torch._dynamo", "torch._inductor", "sympy", "scipy"}
NOT_FOR_DRAWING |= {"torch.distributed.tensor", "torchmetrics", "sklearn", "pandas", "pyarrow", "matplotlib", "fastapi"}
TRIES = 3  # the quickest counts

pytestmark = pytest.mark.quick


def seconds(*arguments: str) -> float:
    """Of processor time: what the program itself needs, whatever else the machine is doing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys; old = set(sys.modules); import fastt2i; print(*{m.split('.')[0] for m in set(sys.modules) - old})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(loaded.split())
    both = [(seconds("-c", "import fastt2i"), seconds("-c", "pass")) for _ in range(TRIES)]
    package, nothing = map(min, zip(*both, strict=True))
    assert package - nothing < 0.15


def test_drawing_imports_what_it_needs(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "circle.png"
    options = ["--model", str(model_folder), "--prompt", "a small red circle", "--out", str(out), "--device", "cpu"]
    code = f"import sys; from fastt2i.generate import main; main({options}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out.is_file() and not NOT_FOR_DRAWING & set(loaded.split())


@pytest.mark.parametrize(
    "program", ["fastt2i.train", "fastt2i.generate", "fastt2i.evaluate", "fastt2i.data", "fastt2i.doctor"]
)
def test_help_comes_quickly(program: str) -> None:
    assert any(seconds("-m", program, "--help") < 1.5 for _ in range(TRIES))
