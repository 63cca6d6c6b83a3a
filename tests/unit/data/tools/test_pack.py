"""Sets written out as folders read back as what they were."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastt2i.data.__main__ import main
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import decode
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.data.sources.shapes import shapes_dataset
from fastt2i.data.tools import pack as pack_module
from fastt2i.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[4]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image-size", "100000"], "--image-size is 100000; it must be 11585 or less"),
        (["--image-size", "11585", "--workers", "100000"], "in 100000 processes would take .* take fewer"),
    ],
)
def test_images_that_are_too_large_for_anything(tmp_path: Path, options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["pack", "--out", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


def test_the_embedded_set_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "new" / "shapes"
    assert (
        main(
            [
                "pack",
                "--to",
                "folder",
                "--data",
                "shapes",
                "--out",
                str(out),
                "--image-size",
                "24",
                "--split",
                "heldout",
            ]
        )
        == 0
    )
    packed, original = folder_dataset(out, "all"), shapes_dataset(24, "heldout")
    assert list(packed) == list(original) and packed.problems == []
    assert all(packed.read(i) == original.read(i) for i in range(128))
    assert entries(tmp_path / "new") == ["shapes"]


def test_limit_and_defaults(tmp_path: Path) -> None:
    main(["pack", "--to", "folder", "--out", str(tmp_path / "out"), "--limit", "5"])
    packed, original = folder_dataset(tmp_path / "out", "all"), shapes_dataset(32).head(5)
    assert list(packed) == list(original) and packed.read(3) == original.read(3)


def test_a_folder_is_copied_as_it_is(captioned_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = captioned_folder(5)
    (folder / "sub").mkdir()
    for name in ("000.png", "000.txt"):
        (folder / name).rename(folder / "sub" / name)
    main(["pack", "--to", "folder", "--data", str(folder), "--out", str(tmp_path / "out")])
    packed, original = folder_dataset(tmp_path / "out", "all"), folder_dataset(folder, "all")
    assert list(packed) == list(original)
    assert [packed.read(i) for i in range(5)] == [original.read(i) for i in range(5)]


def test_a_folder_is_resized_and_what_is_broken_left_out(
    captioned_folder: Callable[..., Path],
    tmp_path: Path,
    picture: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = captioned_folder(4, bad=(1,))
    (folder / "000.png").unlink()
    (folder / "000.jpg").write_bytes(picture(0, (30, 20), "JPEG"))
    (folder / "alone.png").write_bytes(picture(9))
    main(["pack", "--to", "folder", "--data", str(folder), "--out", str(tmp_path / "out"), "--image-size", "8"])
    packed = folder_dataset(tmp_path / "out", "all")
    assert list(packed.keys) == ["000.jpg.png", "002.png", "003.png"]
    for sample, name in enumerate(("000.jpg", "002.png", "003.png")):
        with Image.open(io.BytesIO(packed.read(sample))) as image:
            np.testing.assert_array_equal(np.asarray(image), decode((folder / name).read_bytes(), 8))
    said = capsys.readouterr().err
    assert "left out 001.png: damaged" in said and "left out alone.png: an image without a caption" in said


def test_an_existing_folder_is_refused_unless_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    main(["pack", "--to", "folder", "--out", str(out), "--limit", "2"])
    before = entries(out)
    with pytest.raises(UserError, match="out exists and is not an empty folder"):
        main(["pack", "--to", "folder", "--out", str(out), "--limit", "3"])
    assert entries(out) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file exists and is not an empty folder"):
        main(["pack", "--to", "folder", "--out", str(tmp_path / "file"), "--limit", "3"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_pack_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    written = []

    def fail(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise error
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        pack_module.pack(shapes_dataset(16), tmp_path / "out", progress=False)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {tmp_path / 'out'}: No space left on device"
    assert entries(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*: Not a directory"):
        main(["pack", "--to", "folder", "--out", str(tmp_path / "file" / "out"), "--limit", "1"])


def test_boxes_are_cut_and_never_lost(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    content = picture(1, (20, 10))
    dataset = Dataset(
        name="cut",
        keys=["no extension"],
        captions=[("one",)],
        read=lambda sample: content,
        crops=np.array([[-5, 2, 6, 8]]),
    )
    with pytest.raises(UserError, match="cut to boxes, which copies would not be: give --image-size"):
        pack_module.pack(dataset, tmp_path / "out", progress=False)
    pack_module.pack(dataset, tmp_path / "out", image_size=6, progress=False)
    packed = folder_dataset(tmp_path / "out", "all")
    assert list(packed.keys) == ["no extension.png"]
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image)[2:8, :6]
    np.testing.assert_array_equal(decode(packed.read(0), 6), expected)


def test_names_cannot_leave_the_folder(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    dataset = Dataset(
        name="names",
        keys=["../up.png", "/tmp/absolute.png", "a/b"],
        captions=[("one",)] * 3,
        read=lambda sample: picture(sample, format="JPEG"),
    )
    problems = pack_module.pack(dataset, tmp_path / "in" / "out", progress=False)
    assert [problem.where for problem in problems] == ["../up.png", "/tmp/absolute.png"]
    assert list(folder_dataset(tmp_path / "in" / "out", "all").keys) == ["a/b.jpg"]
    assert entries(tmp_path) == ["in"]


def test_no_readable_image(captioned_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = captioned_folder(3, bad=(0, 1, 2))
    with pytest.raises(UserError, match="none of the 3 images of .* can be read; the first is 000.png: damaged"):
        main(["pack", "--to", "folder", "--data", str(folder), "--out", str(tmp_path / "out"), "--image-size", "8"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--image-size", "0"], ["--image-size", "x"], ["--limit", "-1"], ["--split", "test"]]
)
def test_bad_arguments_are_refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pack", "--to", "folder", "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastt2i.data.__main__ import main\ntry: main(['pack', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
