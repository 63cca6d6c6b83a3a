"""Exported files draw what the pipeline draws; ONNX files without torch and without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastt2i import cli
from fastt2i.data.shapes import caption, combinations
from fastt2i.errors import UserError
from fastt2i.export import Exported, export_model
from fastt2i.export.file_formats import FACTS
from fastt2i.models.pretrained import PretrainedModel, load_pretrained
from fastt2i.pictures.pixels import to_uint8

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "export.md").read_text(), re.DOTALL | re.MULTILINE
)
PROMPTS = [caption(each, number % 3) for number, each in enumerate(combinations()[:100])]

#: Runs a block of the page where torch, transformers and this package cannot be imported, and keeps what it drew.
ALONE = """
import sys
for name in ("torch", "transformers", "fastt2i"):
    sys.modules[name] = None
names = {}
block, out = sys.argv[1:]
exec(block, names)
names["np"].savez(out, images=names["images"], noise=names["noise"], prompts=names["prompts"])
"""


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PretrainedModel:
    return load_pretrained(model_folder)


@pytest.fixture(scope="module")
def onnx(model: PretrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_model(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


def drawn_here(model: PretrainedModel, prompts: list[str], noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    sentences = model.load_text_encoder(torch.device("cpu"))(prompts).sentence
    with torch.no_grad():
        return to_uint8(model.generator(sentences, torch.from_numpy(noise)).images)


def levels(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b).max())


def run_alone(block: str, folder: Path) -> dict[str, NDArray]:
    command = [sys.executable, "-c", ALONE, block, str(folder / "drawn.npz")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "drawn.npz"))


@pytest.mark.quick
def test_onnx_draws_from_text_without_torch(model: PretrainedModel, onnx: Exported) -> None:
    """As the page shows it; with its own prompts, and with a hundred."""
    page = BLOCKS[0]
    for block in (page, re.sub(r"^prompts = .*$", f"prompts = {PROMPTS!r}", page, flags=re.MULTILINE)):
        drawn = run_alone(block, onnx.path.parent)
        prompts = drawn["prompts"].tolist()
        expected = drawn_here(model, prompts, drawn["noise"])
        assert levels(drawn["images"], expected) <= 1
        assert len(np.unique(expected, axis=0)) == len(prompts)
    assert len(prompts) == 100
    assert (onnx.path.parent / "image.png").is_file()


@pytest.mark.quick
def test_torch_export_draws_from_text(
    model: PretrainedModel,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["export", "--model", str(model_folder), "--out", str(tmp_path / "model.pt2")]) == 0
    told = capsys.readouterr().out
    assert "96 images differ from the pipeline's by 0.0" in told and "needs    torch" in told
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(BLOCKS[1], names)
    assert levels(names["images"].numpy(), drawn_here(model, names["prompts"], names["noise"].numpy())) <= 1


def test_a_file_says_what_it_needs(model: PretrainedModel, onnx: Exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map[FACTS])
    assert facts == onnx.facts and facts["model"] == model.digest
    assert "ONNX operators of version" in facts["needs"] and "tokenizers" in facts["needs"]
    assert facts["difference_from_pipeline"]["max_levels"] <= 1 and facts["difference_from_pipeline"]["images"] == 96
    given = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    assert given == {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch", "length"],
        "noise": ["batch", model.generator.noise_dim],
        "images": ["batch", 32, 32, 3],
    }
    assert set(given) == {*facts["inputs"], *facts["outputs"]}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_generator_alone(model: PretrainedModel, tmp_path: Path, suffix: str) -> None:
    exported = export_model(model, tmp_path / f"generator{suffix}", what="generator")
    assert set(exported.facts["inputs"]) == {"sentence", "noise"} and "tokenizers" not in exported.facts["needs"]
    assert exported.facts["difference_from_pipeline"]["max_levels"] <= 1


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_int8_is_told(model: PretrainedModel, tmp_path: Path, suffix: str) -> None:
    exported = export_model(model, tmp_path / f"small{suffix}", int8=True)
    difference = exported.facts["difference_from_pipeline"]
    assert exported.facts["weights"].startswith("int8") and difference["mean_levels"] < 2.55
    assert model.generator.encoder[2].weight.dtype == torch.float32 and "parametrizations" not in str(model.generator)


@pytest.mark.quick
def test_mistakes_are_one_sentence(model: PretrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model.bin has the suffix '.bin'; it must be .onnx or .pt2"):
        export_model(model, tmp_path / "model.bin")
    with pytest.raises(UserError, match="what is 'half'; it must be generator or whole"):
        export_model(model, tmp_path / "model.onnx", what="half")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="ONNX needs onnxscript; install it with pip install"):
        export_model(model, tmp_path / "model.onnx", what="generator")
    assert list(tmp_path.iterdir()) == []
