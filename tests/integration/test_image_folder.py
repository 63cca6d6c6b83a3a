"""Many images in a folder: what is in it, a run that was stopped, and files and folders of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastt2i import generate
from fastt2i.errors import UserError
from fastt2i.image_folder import ImageFolder
from fastt2i.pictures.pixels import png
from fastt2i.pipeline import Drawing, TextToImagePipeline
from fastt2i.request import Part

PROMPTS = [f"a {size} {color} circle" for size in ("small", "large") for color in ("red", "blue", "green", "pink")] * 5


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


def draw(model: Path, prompts: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    arguments = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--num", "3", "--seed", "7"]
    assert generate.main([*arguments, *options]) == 0
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.quick
def test_each_image_says_what_it_is(model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    lines = draw(model_folder, prompts, tmp_path / "out")
    assert [line["file_name"] for line in lines] == [f"{n:07d}.png" for n in range(120)]
    assert [line["prompt"] for line in lines] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert [line["seed"] for line in lines] == [7 + n // 3 for n in range(120)]
    assert [line["number"] for line in lines] == [0, 1, 2] * 40
    pipeline = TextToImagePipeline.from_pretrained(model_folder)
    assert {line["model"] for line in lines} == {pipeline.model.digest}
    with Image.open(tmp_path / "out" / "0000031.png") as image:
        assert image.text["prompt"] == PROMPTS[10] and (image.text["seed"], image.text["number"]) == ("17", "1")
        alone = pipeline(PROMPTS[10], seed=17, num=2)[1]
        assert image.tobytes() == alone.tobytes()
    assert len({(tmp_path / "out" / line["file_name"]).read_bytes() for line in lines}) == 120


def draw_many(model: Path, out: Path) -> dict[str, bytes]:
    """130 images of each of two prompts; the folder's files."""
    prompts = [option for prompt in PROMPTS[:2] for option in ("--prompt", prompt)]
    assert generate.main(["--model", str(model), *prompts, "--num", "130", "--seed", "7", "--out", str(out)]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_many_images_of_a_prompt_are_drawn_a_batch_at_a_time(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And are the bytes that they are when all are drawn at once, also of a run that was stopped."""
    pipeline = TextToImagePipeline.from_pretrained(model_folder, "cpu")
    expected = [png(image) for image in pipeline(PROMPTS[:2], num=130, seed=7)]
    out, groups, draw_parts = tmp_path / "out", [], TextToImagePipeline.draw_parts

    def stop_in_the_second(pipeline: TextToImagePipeline, parts: list[Part]) -> list[Drawing]:
        if len(groups) == 1:
            assert len(list(out.glob("*.png"))) == 64
            raise KeyboardInterrupt
        return note(pipeline, parts)

    def note(pipeline: TextToImagePipeline, parts: list[Part]) -> list[Drawing]:
        groups.append([len(part.numbers) for part in parts])
        return draw_parts(pipeline, parts)

    monkeypatch.setattr(TextToImagePipeline, "draw_parts", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        draw_many(model_folder, out)
    monkeypatch.setattr(TextToImagePipeline, "draw_parts", note)
    files = draw_many(model_folder, out)
    assert groups == [[64], [64], [2], [64], [64], [2]]
    assert capsys.readouterr().out == f"260 images in {out}, 64 of them from before\n"
    lines = [json.loads(line) for line in files.pop("metadata.jsonl").splitlines()]
    assert [files.pop(line["file_name"]) for line in lines] == expected and not files
    assert [line["number"] for line in lines] == [*range(130)] * 2
    assert {(line["num"], line["seed"]) for line in lines} == {(130, 7)}


def test_a_stopped_run_goes_on(
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And leaves what one leaves that nothing stopped, wherever it was stopped: between groups or within a line."""
    options = ("--best-of", "4", "--negative-prompt", "a square")
    whole = draw(model_folder, prompts, tmp_path / "whole", *options)
    assert all(isinstance(line["score"], float) and line["best_of"] == 4 for line in whole)
    draw_group, groups = ImageFolder._draw_group, []

    def stop_in_the_third(folder: ImageFolder, group: Any, first: int) -> None:
        if len(groups) == 2:
            raise KeyboardInterrupt
        groups.append(first)
        draw_group(folder, group, first)

    monkeypatch.setattr(ImageFolder, "_draw_group", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        draw(model_folder, prompts, tmp_path / "out", *options)
    assert groups == [0, 48]
    file = tmp_path / "out" / "metadata.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(ImageFolder, "_draw_group", lambda *a: (groups.append(a[2]), draw_group(*a))[1])
    capsys.readouterr()
    assert draw(model_folder, prompts, tmp_path / "out", *options) == whole
    assert groups == [0, 48, 48, 96] and "120 images in" in capsys.readouterr().out
    for line in whole:
        name = line["file_name"]
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    draw(model_folder, prompts, tmp_path / "out", *options)
    assert len(groups) == 4 and "120 of them from before" in capsys.readouterr().out


def test_folders_and_files_of_something_else(model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    draw(model_folder, prompts, tmp_path / "out")
    for options, sentence in (
        (("--seed", "8"), "holds images of other prompts, other settings or another model"),
        (("--num", "2"), "holds images of other prompts, other settings or another model"),
    ):
        with pytest.raises(UserError, match=sentence):
            draw(model_folder, prompts, tmp_path / "out", *options)
    prompts.write_text("\n".join(PROMPTS[:21]))
    with pytest.raises(UserError, match="holds more images than these prompts have"):
        draw(model_folder, prompts, tmp_path / "out")
    (tmp_path / "out" / "0000000.png").unlink()
    with pytest.raises(UserError, match="0000000.png is gone"):
        draw(model_folder, prompts, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and has no metadata.jsonl"):
        draw(model_folder, prompts, tmp_path / "other")
    for content, sentence in ((b"\n \n", "has no prompt"), (b"\xff\xfe", "is no text in UTF-8")):
        prompts.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            draw(model_folder, prompts, tmp_path / "new")
    with pytest.raises(UserError, match="cannot read the prompts"):
        draw(model_folder, tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(UserError, match="--prompts goes neither with --prompt"):
        draw(model_folder, prompts, tmp_path / "new", "--prompt", "a circle")
    with pytest.raises(UserError, match="x.png is a picture; the images of --prompts go to a folder"):
        draw(model_folder, prompts, tmp_path / "x.png")
    with pytest.raises(UserError, match="there is nothing to draw; say what with --prompt or --prompts"):
        generate.main(["--model", str(model_folder), "--out", str(tmp_path / "x.png")])
