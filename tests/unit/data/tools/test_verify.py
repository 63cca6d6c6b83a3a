"""The full check: it finds what is broken, once, and says the same however it was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from fastt2i.data.__main__ import main
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import Decoder
from fastt2i.data.open import open_dataset
from fastt2i.data.tools import verify as module
from fastt2i.data.tools.verify import verify
from fastt2i.data.verify_report import report
from fastt2i.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    """No test of these writes to the user's."""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples that are decoded from now on."""
    samples: list[int] = []
    original = Decoder.__call__

    def note(self: Decoder, sample: int) -> object:
        samples.append(sample)
        return original(self, sample)

    monkeypatch.setattr(Decoder, "__call__", note)
    return samples


def check(path: Path, **options: bool) -> tuple[Dataset, dict[str, str]]:
    dataset = open_dataset(str(path), image_size=16, split="all")
    findings = verify(dataset, workers=0, progress=False, **options)
    return dataset, {finding.where: f"{finding.kind}: {finding.what}" for finding in findings}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_report(
    captioned_folder: Callable[..., Path],
    tmp_path: Path,
    picture: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
    workers: str,
) -> None:
    folder, out = captioned_folder(40, bad=(3, 30)), tmp_path / "report.jsonl"
    (folder / "007.png").write_bytes(b"")
    (folder / "009.png").write_text("<html>")
    (folder / "alone.png").write_bytes(picture(9))
    assert main(["verify", "--data", str(folder), "--out", str(out), "--workers", workers]) == 1
    *lines, summary = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["kind"], line["where"]) for line in lines] == [
        ("source", "alone.png"),
        *(("image", f"{number:03d}.png") for number in (3, 7, 9, 30)),
    ]
    assert [line["what"].split(":")[0] for line in lines] == [
        "an image without a caption",
        "damaged",
        "the file is empty",
        "not a JPEG, PNG, WebP or BMP image",
        "damaged",
    ]
    assert summary == {
        "kind": "summary",
        "data": str(folder),
        "images": 40,
        "bad_images": 4,
        "bad_shards": 0,
        "left_out": 1,
        "reasons": {"damaged": 2, "not a JPEG, PNG, WebP or BMP image": 1, "the file is empty": 1},
    }
    said = capsys.readouterr()
    assert "40 images, 4 that cannot be decoded, 1 left out for other reasons; the report is in" in said.out
    assert "007.png: the file is empty" in said.err and "verifying" in said.err


def test_every_layout_is_clean(layout: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.jsonl"
    assert main(["verify", "--data", layout[1], "--format", layout[0], "--out", str(out), "--workers", "0"]) == 0
    assert json.loads(out.read_text())["images"] == 12
    assert "12 images, 0 that cannot be decoded" in capsys.readouterr().out


def test_only_what_has_changed_is_decoded_again(
    captioned_folder: Callable[..., Path], picture: Callable[..., bytes], decoded: list[int]
) -> None:
    folder = captioned_folder(50, bad=(10,))
    _, first = check(folder)
    assert decoded == list(range(50)) and list(first) == ["010.png"]
    decoded.clear()
    assert check(folder)[1] == first and decoded == []
    (folder / "010.png").write_bytes(picture(3))
    os.utime(folder / "020.png", ns=(1, 1))
    (folder / "021.png").write_bytes(b"shorter")
    (folder / "0000.png").write_bytes(picture(4))
    (folder / "0000.txt").write_text("new, and before others")
    assert list(check(folder)[1]) == ["021.png"]
    assert decoded == [1, 11, 21, 22]
    decoded.clear()
    assert list(check(folder, afresh=True)[1]) == ["021.png"] and len(decoded) == 51


def test_shards_and_tables_are_known_by_what_they_are(
    layout: tuple[str, str], tmp_path: Path, decoded: list[int]
) -> None:
    path = Path(layout[1])
    check(path)
    assert len(decoded) == 12
    decoded.clear()
    check(path)
    assert decoded == []
    shards = open_dataset(str(path), image_size=16).shards
    os.utime(shards[0] if shards else next(path.rglob("*.jpg")), ns=(5, 5))
    check(path)
    assert 0 < len(decoded) < 12


def interrupted(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    original, count = Decoder.__call__, iter(range(10_000))

    def stop(self: Decoder, sample: int) -> object:
        if next(count) == after:
            raise KeyboardInterrupt
        return original(self, sample)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            verify(dataset, workers=0, progress=False)


@pytest.mark.parametrize("after", [0, 31, 32, 33, 64, 99])
@pytest.mark.parametrize("damage", ["", "cut", "end cut", "garbage"])
def test_an_interrupted_check_goes_on(
    captioned_folder: Callable[..., Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    decoded: list[int],
    after: int,
    damage: str,
) -> None:
    dataset = open_dataset(str(captioned_folder(100, bad=(2, 40, 98))), image_size=16, split="all")
    whole = report(dataset, verify(dataset, workers=0, progress=False))
    (journal,) = (cache / "verify").glob("*.journal")
    kept = journal.read_bytes()
    journal.unlink()
    interrupted(dataset, monkeypatch, after)
    done = after // 32 * 32
    if damage in ("cut", "end cut"):
        journal.write_bytes(journal.read_bytes()[: -3 if damage == "cut" else -1])
        done = max(done - 32, 0)
    elif damage:
        journal.write_bytes(journal.read_bytes() + b'{"good": \0\xff')
    decoded.clear()
    assert report(dataset, verify(dataset, workers=0, progress=False)) == whole
    assert decoded == list(range(done, 100)) and journal.read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b'{"journal": 1, "pillow": "0", "max_pixels": 9}\n'])
def test_a_journal_of_something_else_does_not_count(
    captioned_folder: Callable[..., Path], cache: Path, decoded: list[int], content: bytes
) -> None:
    folder = captioned_folder(3)
    check(folder)
    (journal,) = (cache / "verify").glob("*.journal")
    kept = journal.read_bytes()
    journal.write_bytes(content)
    decoded.clear()
    check(folder)
    assert decoded == [0, 1, 2] and journal.read_bytes() == kept


def test_what_cannot_be_read_is_tried_again(
    captioned_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    folder = captioned_folder(4)
    dataset = open_dataset(str(folder), image_size=16, split="all")
    (folder / "001.png").rename(folder / "001.away")
    (folder / "002.png").unlink()
    (folder / "002.png").mkdir()
    findings = verify(dataset, workers=0, progress=False)
    assert [(f.where, f.what) for f in findings] == [
        ("001.png", "cannot be read: No such file or directory"),
        ("002.png", "cannot be read: not a regular file"),
    ]
    (folder / "001.away").rename(folder / "001.png")
    decoded.clear()
    assert [f.where for f in verify(dataset, workers=0, progress=False)] == ["002.png"] and decoded == [1, 2]


def test_packed_shards_are_compared_with_their_digests(tmp_path: Path, decoded: list[int]) -> None:
    out = tmp_path / "out"
    main(["pack", "--out", str(out), "--limit", "12", "--shard-samples", "3"])
    assert check(out)[1] == {}
    changed = bytearray((out / "00001.tar").read_bytes())
    changed[-1500] ^= 1  # of a caption
    (out / "00001.tar").write_bytes(changed)
    with (out / "00002.tar").open("ab") as file:
        file.write(bytes(512))
    (out / "00003.tar").unlink()
    assert check(out)[1] == {
        str(out / "00003.tar"): "shard: it is in manifest.json, and not there",
        str(out / "00001.tar"): "shard: its SHA-256 is not the one in manifest.json",
        str(out / "00002.tar"): f"shard: it has {(out / '00002.tar').stat().st_size} bytes where manifest.json says "
        f"{(out / '00002.tar').stat().st_size - 512}",
    }
    (out / "manifest.json").write_text('{"shards": [{"name": "../x", "sha256": ""}]}')
    with pytest.raises(UserError, match="manifest.json is no list of shards"):
        check(out)


def test_boxes_count(tmp_path: Path, make_layout: Callable[[str, Path], str], decoded: list[int]) -> None:
    birds = Path(make_layout("cub", tmp_path / "birds"))
    check(birds)
    decoded.clear()
    table = birds / "CUB_200_2011" / "bounding_boxes.txt"
    table.write_text(table.read_text().replace("1 45.0 44.0 13.0 11.0", "1 900.0 900.0 13.0 11.0", 1))
    (finding,) = check(birds)[1].values()
    assert "lies outside of its 104 x 100 pixels" in finding and decoded == [0]


def test_places_that_cannot_be_written(captioned_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = captioned_folder(2)
    for out in (tmp_path, tmp_path / "gone" / "report.jsonl"):
        with pytest.raises(UserError, match="cannot write .*: name a file in a folder that is there with --out"):
            main(["verify", "--data", str(folder), "--out", str(out)])


def test_two_at_once_are_refused(captioned_folder: Callable[..., Path], cache: Path) -> None:
    folder = captioned_folder(2)
    check(folder)
    (journal,) = (cache / "verify").glob("*.journal")
    with FileLock(journal.with_suffix(".lock")), pytest.raises(UserError, match="another process is verifying"):
        check(folder)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    captioned_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "user_cache", lambda name: tmp_path / "file" / name)
    with pytest.raises(UserError, match="the journal .* cannot be kept: Not a directory"):
        check(captioned_folder(2))


def test_training_and_packing_can_leave_out_what_is_listed(
    captioned_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(captioned_folder(10, bad=(3, 8))), str(tmp_path / "report.jsonl")
    assert main(["verify", "--data", folder, "--out", out, "--workers", "0"]) == 1
    dataset = open_dataset(folder, image_size=16, split="all", leave_out=out)
    assert dataset.keys == [f"{n:03d}.png" for n in range(10) if n not in (3, 8)]
    assert [own[0] for own in dataset.captions] == [f"picture {n}" for n in range(10) if n not in (3, 8)]
    assert [(p.where, p.what.split(":")[0]) for p in dataset.problems] == [
        ("003.png", "damaged"),
        ("008.png", "damaged"),
    ]
    main(["pack", "--data", folder, "--out", str(tmp_path / "out"), "--leave-out", out])
    assert check(tmp_path / "out")[1] == {}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"", "its summary is missing"),
        (b"[1]\n", "is no report"),
        (b"\xff", "is no report"),
        (b'{"kind": "image", "where": "0", "what": "x"}\n', "its summary is missing"),
        (b'{"kind": "image", "where": "000.png", "what": "x"}\n{"kind": "summary"}\n', "lists every image of"),
    ],
)
def test_what_is_no_report_is_one_sentence(
    captioned_folder: Callable[..., Path], tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "report.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_dataset(str(captioned_folder(1)), image_size=16, leave_out=str(path))
