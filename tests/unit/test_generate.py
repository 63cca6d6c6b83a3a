"""Mistakes that `generate` finds before it loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastt2i import generate
from fastt2i.errors import UserError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "a.bmp"], "a.bmp is none of .jpeg, .jpg, .png, .webp; name one of these, or a folder"),
        (["--out", "a.mp4", "--frames", "3"], "a.mp4 is none of"),
        (
            ["--out", "a.png", "--num", "257"],
            "a.png would be a sheet of 257 images, and one can be read up to 256; ask",
        ),
        (["--out", "a.webp", "--to-seed", "1", "--frames", "5000"], "a.webp would be a sheet of 5,000 images"),
        (["--out", "-"], "--out is -, but images go to no standard output; name a file as image.png"),
        (["--out", "/dev/null"], "/dev/null is a file and no picture; name one as image.png, or a folder"),
        (["--out", __file__], "test_generate.py is a file and no picture"),
        *(
            (["--out", "a.gif", "--to-seed", "1", "--frames", "3", "--seconds", seconds], "more than 0 and at most 600")
            for seconds in ("nan", "inf", "-1", "1e9")
        ),
    ],
)
def test_mistakes(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate.main(["--model", "nowhere", "--prompt", "a red circle", *options])


def test_home_is_known_after_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path}/model holds no model"):
        generate.main(["--model=~/model", "--prompt", "a red circle", "--out=~/a.png"])
