"""The code in the documents runs as written, and does what is said of it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastt2i.data.open import open_dataset

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.quick


def run_page(name: str) -> dict[str, Any]:
    """Run a page's Python in order; returns the names it leaves."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)
    return names


@pytest.fixture(scope="module")
def gated() -> dict[str, Any]:
    return run_page("gated-convolutions.md")


def doubling(channels: int, out: int, *between: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(channels, 2 * out, 3, padding=1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv, *between, nn.GLU(dim=1))


def generator(*, normalised: bool) -> nn.Module:
    """GLU blocks as AttnGAN and FastGAN nest them."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if normalised else []

    torch.manual_seed(0)
    residual = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), *norm(16), nn.GLU(dim=1), nn.Conv2d(8, 8, 1))
    blocks = [doubling(6, 8, *norm(16)), residual, doubling(8, 4, *norm(8)), nn.Conv2d(4, 6, 1), nn.GLU(dim=-3)]
    model = nn.Sequential(*blocks).double()
    model(torch.randn(4, 6, 3, 3, dtype=torch.float64))  # statistics of the normalisation that are not 0 and 1
    return model


def results(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = model(x)
    return y, torch.autograd.grad(y.square().sum(), x)[0]


def kinds(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules()]


def test_glu_blocks_are_replaced_by_layers_that_do_the_same(gated: dict[str, Any]) -> None:
    old = generator(normalised=False)
    new = gated["convert"](copy.deepcopy(old))
    assert (kinds(new).count("UpsampleGatedConv2d"), kinds(new).count("GatedConv2d")) == (2, 2)
    assert "GLU" not in kinds(new) and "Upsample" not in kinds(new)
    torch.testing.assert_close(results(new), results(old))


def test_glus_behind_a_normalisation_become_gates(gated: dict[str, Any]) -> None:
    old = generator(normalised=True)
    new = gated["convert"](copy.deepcopy(old))
    assert kinds(new).count("Gate") == 3 and kinds(new).count("GatedConv2d") == 1 and "GLU" not in kinds(new)
    torch.testing.assert_close(results(new), results(old))


def test_a_trained_generator_takes_whole_layers(gated: dict[str, Any]) -> None:
    old = generator(normalised=True).eval()
    new = gated["convert"](gated["fold_normalisation"](copy.deepcopy(old)))
    assert (kinds(new).count("UpsampleGatedConv2d"), kinds(new).count("GatedConv2d")) == (2, 2)
    assert not {"BatchNorm2d", "GLU", "Gate"} & set(kinds(new))
    torch.testing.assert_close(results(new), results(old))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # old-style norms of weights are what many models have
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_a_normalised_weight_stays_with_its_convolution(gated: dict[str, Any], norm: Any) -> None:
    old = nn.Sequential(norm(nn.Conv2d(6, 8, 3)), nn.GLU(dim=1)).double().eval()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    expected = old(x)
    new = gated["convert"](old)
    assert kinds(new) == ["Sequential", "Conv2d", "Gate"]
    torch.testing.assert_close(new(x), expected)


def test_the_set_to_tune_to_is_made_and_scored(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("fine-tuning.md")
    data = open_dataset("words", "auto", image_size=32, split="all", heldout=0.0)
    assert len(data) == 1152 and "a huge navy pyramid over snow" in str(data.captions)
    assert set(names["score"](model_folder)) == {"color", "shape", "size", "position", "background", "all"}
