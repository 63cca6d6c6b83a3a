"""The tools for data sets, as programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastt2i.data.__main__ import main
from fastt2i.errors import UserError

ROOT = Path(__file__).parents[2]


def test_inspect_tells_of_every_layout(
    layout: tuple[str, str], language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    options = ["--text-model", str(language_model), "--out", str(sheet), "--workers", "0", "--images", "5"]
    assert main(["inspect", "--data", layout[1], *options]) == 0
    said = capsys.readouterr().out
    assert "12 images, 9 to train on and 3 held out" in said and f"wrote {sheet}" in said
    assert ("classes              4" in said) == (layout[0] in ("cub", "flowers"))
    assert "captions             24, of which 24 are different" in said and "duplicates           none" in said
    assert "zero (2)" in said and "0.0% of captions are longer than" in said
    with Image.open(sheet) as image:
        assert image.width > 5 * 232


def test_inspect_without_a_language_model(
    captioned_folder_of_numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--text-model", str(tmp_path / "no" / "model")]
    sheet = tmp_path / "sheet.png"
    arguments = ["inspect", "--data", str(captioned_folder_of_numbers), "--out", str(sheet), *model, "--workers", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "keywords             left out: the language model" in said and "most common" not in said
    assert "2 images" in said and "left out             1: " in said and sheet.is_file()


def test_a_sheet_that_cannot_be_written(captioned_folder_of_numbers: Path, language_model: Path) -> None:
    data = ["--data", str(captioned_folder_of_numbers), "--text-model", str(language_model), "--workers", "0"]
    with pytest.raises(UserError, match="cannot write"):
        main(["inspect", *data, "--out", str(captioned_folder_of_numbers / "1.jpg" / "sheet.png")])


@pytest.fixture
def captioned_folder_of_numbers(tmp_path: Path, image_of: Callable[..., bytes]) -> Path:
    folder = tmp_path / "numbers"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(image_of(number))
        (folder / f"{number}.txt").write_text("a red one" if number else "")
    return folder


def test_help_lists_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"    {command} " in said for command in ("inspect", "verify", "pack"))


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_ctrl_c_ends_a_tool_with_a_word(command: str, tmp_path: Path, cache: Path) -> None:
    """It reaches the whole process group, as on a terminal."""
    arguments = {
        "verify": ["--data", "shapes", "--out", str(tmp_path / "report.jsonl")],
        "pack": ["--split", "all", "--shard-samples", "100", "--out", str(tmp_path / "out")],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "fastt2i.data", command, *arguments[command]],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    assert process.stderr is not None
    seen = b""
    while b"0/4736" not in seen:
        seen += process.stderr.read(64)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130 and b"interrupted; the same command goes on" in rest and b"Traceback" not in rest
