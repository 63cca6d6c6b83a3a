"""Drawing from prompts, by program and by pipeline, and model folders that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastt2i import TextToImagePipeline, cli, generate, train
from fastt2i.errors import UserError

PROMPTS = ["a small red circle on a white background", "a large blue square at the top left"]


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model: what it draws does not matter here."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*tiny, "--train.steps", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pipeline(run: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(run)


def pixels(images: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(i) for i in images]


def test_the_same_seed_gives_the_same_images(pipeline: TextToImagePipeline) -> None:
    first, again, other = (pixels(pipeline(PROMPTS, seed=s, num=3)) for s in (5, 5, 6))
    assert len(first) == 6 and first[0].shape == (32, 32, 3) and first[0].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({p.tobytes() for p in first}) == 6


def test_an_image_depends_on_its_own_prompt_alone(pipeline: TextToImagePipeline) -> None:
    together = pixels(pipeline(PROMPTS, seed=5, num=2, batch_size=3))
    alone = pixels(pipeline(PROMPTS[1], seed=5, num=2))
    assert all(np.array_equal(a, b) for a, b in zip(together[2:], alone, strict=True))


def test_a_saved_pipeline_draws_the_same(pipeline: TextToImagePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "copy")
    copy = TextToImagePipeline.from_pretrained(tmp_path / "copy")
    assert pixels(copy(PROMPTS))[0].tobytes() == pixels(pipeline(PROMPTS))[0].tobytes()
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "CN115619903A" in card and "32 x 32 pixels" in card and "steps: 2" in card


def test_files_and_sheets(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(run), "--prompt", PROMPTS[0]]
    assert generate.main([*model, "--out", str(tmp_path / "new" / "one.png")]) == 0
    assert Image.open(tmp_path / "new" / "one.png").size == (32, 32)
    assert generate.main([*model, "--prompt", PROMPTS[1], "--num", "2", "--out", str(tmp_path / "sheet.jpg")]) == 0
    assert Image.open(tmp_path / "sheet.jpg").width > 4 * 32
    assert generate.main([*model, "--num", "3", "--out", str(tmp_path / "folder")]) == 0
    names = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert names == [*(f"000000{n}.png" for n in range(3)), "metadata.jsonl"]
    assert capsys.readouterr().out.splitlines()[-1] == f"3 images in {tmp_path / 'folder'}"
    frames = ["--prompt", PROMPTS[1], "--frames", "3", "--out", str(tmp_path / "frames")]
    assert generate.main([*model, *frames]) == 0
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == [f"00{n}-frame-{n + 1}.png" for n in range(3)]


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        ("circle " * 10_000, "longer than the language model reads"),
        ("日本語の文", "has no word that the language model"),
    ],
)
def test_prompts_that_the_model_cannot_follow_are_warned_of(
    run: Path, tmp_path: Path, prompt: str, warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["--model", str(run), "--prompt", prompt, "--out", str(tmp_path)]) == 0
    assert "fastt2i: warning: prompt 1" in (errors := capsys.readouterr().err) and warning in errors
    assert {path.name for path in tmp_path.iterdir()} == {"0000000.png", "metadata.jsonl"}


def test_mistakes_are_one_sentence(run: Path, pipeline: TextToImagePipeline, tmp_path: Path) -> None:
    def fails(sentence: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=sentence):
            generate.main([*arguments, "--out", str(tmp_path / "x.png")])

    fails("the prompt '  ' is empty", "--model", str(run), "--prompt", "  ")
    fails("num is 0; it must be 1 or more", "--model", str(run), "--prompt", "a", "--num", "0")
    fails("holds no model", "--model", str(tmp_path), "--prompt", "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        generate.main(["--model", str(run), "--prompt", "a", "--out", str(tmp_path / "file" / "x.png")])
    assert pipeline([]) == []


@pytest.mark.parametrize("file", ["config.json", "generator.safetensors", "discriminator.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_model_is_one_sentence_that_names_the_file(
    run: Path, tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    content = bytearray((model / file).read_bytes())
    if damage == "missing":
        (model / file).unlink()
    elif damage == "truncated":
        (model / file).write_bytes(content[: len(content) // 2])
    else:
        content[1] ^= 0x80
        (model / file).write_bytes(content)
    status = cli.main(["generate", "--model", str(model), "--prompt", "a circle", "--out", str(tmp_path / "x.png")])
    errors = capsys.readouterr().err
    assert status == 2 and errors.count("\n") == 1
    assert (file in errors) or "holds no model" in errors


def test_a_model_from_before_noise_was_balanced_draws_what_it_drew(tiny: list[str], tmp_path: Path) -> None:
    """Its configuration lacks the field; such a run goes on, too."""
    options = [*tiny, "--train.steps", "1", "--model.no-balanced-noise", "--out", str(tmp_path / "run")]
    assert train.main(options) == 0
    old = TextToImagePipeline.from_pretrained(tmp_path / "run")
    drawn = pixels(old(PROMPTS))[0].tobytes()
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "old")
    header = json.loads((tmp_path / "old" / "config.json").read_text())
    assert header["model"].pop("balanced_noise") is False
    del header["sha256"]["config"]  # which models of then do not have
    (tmp_path / "old" / "config.json").write_text(json.dumps(header))
    again = TextToImagePipeline.from_pretrained(tmp_path / "old")
    assert not again.model.config.balanced_noise and pixels(again(PROMPTS))[0].tobytes() == drawn
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("  balanced_noise: false\n", "").replace("  mode_seeking: 0.4\n", ""))
    assert train.main(["--resume", "--train.steps", "2", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("noted", [True, False])
def test_another_language_model_of_the_same_name_is_refused(noted: bool, run: Path, tmp_path: Path) -> None:
    """Neither its files nor its features, where they were noted, are those of the training's."""
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    header = json.loads((model / "config.json").read_text())
    del header["sha256"]["config"]  # or a changed file is told of before it is read
    header["text"]["sha256"] = "0" * 64
    header["text_sample"] = [value + 0.1 for value in header["text_sample"]] if noted else []
    (model / "config.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="is not the one of the training"):
        TextToImagePipeline.from_pretrained(model)
