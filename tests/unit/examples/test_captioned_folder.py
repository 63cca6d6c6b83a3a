"""The folder that the examples write, and how they choose what to hold out."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.captioned_folder import Picture, downloaded, hold_out, write
from fastt2i.data.open import open_dataset
from fastt2i.errors import UserError

WORDS = {"colour": ["red", "green", "blue", "white"], "thing": ["cat", "dog", "house", "tree", "car"]}


def picture(name: str, *captions: str) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), len(name)).save(file, "PNG")
    return Picture(name, captions, file.getvalue())


def grid() -> list[Picture]:
    """Every colour with every thing, and one thing that is there once."""
    pairs = [(colour, thing) for colour in WORDS["colour"] for thing in WORDS["thing"]]
    return [*(picture(f"{c}-{t}.png", f"a {c} {t}", f"{t}, {c}") for c, t in pairs), picture("owl.png", "a white owl")]


def test_held_out_words_are_all_trained_on() -> None:
    pictures = grid()
    chosen = hold_out(pictures, 0.3)
    trained = {word for p in pictures if p.name not in chosen for word in p.words}
    assert len(chosen) == 7  # 0.3 of 21, rounded up
    assert all(p.words <= trained for p in pictures)
    assert "owl.png" not in chosen


def test_as_many_are_held_out_as_leave_every_word() -> None:
    pictures = grid()
    chosen = hold_out(pictures, 1.0)
    trained = {word for p in pictures if p.name not in chosen for word in p.words}
    assert 0 < len(chosen) < len(pictures) - 1
    assert all(p.words <= trained for p in pictures)


def test_a_caption_of_two_pictures_is_never_held_out() -> None:
    twins = [picture(f"{n}.png", "a red cat") for n in range(4)]
    assert hold_out(twins, 0.5) == set()


def test_who_joins_does_not_change_the_order_of_asking() -> None:
    pictures = grid()
    assert hold_out(pictures, 0.2) == hold_out(pictures[::-1], 0.2)


def test_the_folder_is_one_that_training_takes(tmp_path: Path) -> None:
    pictures = grid()
    out = tmp_path / "set"
    assert write(out, pictures, share=0.2, licence="free\n") == {"train": 16, "test": 5}
    train, heldout = (open_dataset(str(out), image_size=32, split=split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (16, 5)
    assert not train.problems and not heldout.problems
    assert {*train.captions, *heldout.captions} == {p.captions for p in pictures}
    assert (out / "LICENSE").read_text() == "free\n"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine is there already"):
        write(tmp_path / "mine", grid(), share=0.2, licence="")
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = Picture("no/such/folder.png", ("a",), b"")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "set", [bad], share=0.0, licence="")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_one_sentence() -> None:
    with pytest.raises(UserError, match="such-a-program is not installed; fetch .* with --package"):  # noqa: SIM117
        with downloaded(["such-a-program"], "*.tgz"):
            pass
    command = [sys.executable, "-c", "import sys; sys.exit('no network')"]
    with pytest.raises(UserError, match="failed: no network; with --package"):  # noqa: SIM117
        with downloaded(command, "*.tgz"):
            pass


def test_what_was_downloaded_is_there_until_the_block_ends() -> None:
    command = [sys.executable, "-c", "open('set-1.tgz', 'w').write('x')"]
    with downloaded(command, "set-*.tgz") as file:
        assert file.read_text() == "x"
    assert not file.exists()
