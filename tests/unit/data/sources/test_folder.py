"""Folders of every kind, clean and dirty."""

from __future__ import annotations

import os
import pickle
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastt2i.data.captions import MAX_CAPTION
from fastt2i.data.dataset import NO_CAPTION
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.data.verify_report import Finding, report
from fastt2i.errors import UserError
from tests.unit.data.sources.folders import Picture, fill, lines, load, problems, samples


def test_text_beside_images(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"b.png": picture(1), "b.txt": "two\n\n  three \n", "a.JPG": picture(2), "a.TXT": "one"})
    fill(tmp_path, {"deep/er/c d.jpeg": picture(3), "deep/er/c d.txt": "\ufefffour\r\nfünf\r"})
    dataset = load(tmp_path)
    assert list(dataset) == [("a.JPG", ("one",)), ("b.png", ("two", "three")), ("deep/er/c d.jpeg", ("four", "fünf"))]
    assert [dataset.read(i) for i in range(3)] == [picture(2), picture(1), picture(3)]
    assert dataset.problems == [] and dataset.name == str(tmp_path)
    assert pickle.loads(pickle.dumps(dataset.read))(1) == picture(1)


def test_captions_of_both_kinds_join(tmp_path: Path, picture: Picture) -> None:
    fill(
        tmp_path,
        {"a.png": picture(1), "a.txt": "one\nuno", "metadata.jsonl": lines({"file_name": "a.png", "text": "one"})},
    )
    (captions,) = load(tmp_path).captions
    assert sorted(captions) == ["one", "uno"]


def test_lonely_images_and_captions_are_listed(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one", "b.png": picture(2), "c.png": picture(3), "c.txt": " \n"})
    fill(tmp_path, {"d.txt": "nothing shows this"})
    dataset = load(tmp_path)
    assert list(dataset.keys) == ["a.png"]
    assert sorted(problems(dataset)) == [
        ("b.png", "an image without a caption"),
        ("c.png", "an image without a caption"),
        ("d.txt", "a caption file without an image beside it"),
    ]


def test_links(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"outside.png": picture(1), "out/b.png": picture(2), "out/b.txt": "b"})
    folder = fill(tmp_path / "in", {"a.png": picture(3), "a.txt": "one", "same.txt": "also one"})
    (folder / "same.png").symlink_to("a.png")
    (folder / "leaves.png").symlink_to("../outside.png")
    (folder / "leaves.txt").write_text("secret")
    (folder / "captions.txt").symlink_to("../out/b.txt")
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    (folder / "out").symlink_to("../out")
    fill(
        folder,
        {"metadata.jsonl": lines({"file_name": "out/b.png", "text": "b"}, {"file_name": "leaves.png", "text": "l"})},
    )
    dataset = load(folder)
    assert list(dataset) == [("a.png", ("one",)), ("same.png", ("also one",))]
    assert dataset.read(1) == picture(3)
    found = dict(problems(dataset))
    assert found["leaves.png"] == found["captions.txt"] == "a link that leaves the folder"
    assert found["up"] == found["out"] == "a link to a folder; such are not followed"
    assert found["nowhere.png"].startswith("a link that leads nowhere") and "loop.png" in found
    assert found["metadata.jsonl:1"] == "there is no file out/b.png"
    assert "metadata.jsonl:2" in found and "leaves.txt" in found


def test_a_link_to_the_folder_itself_is_fine(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path / "real", {"a.png": picture(1), "a.txt": "one"})
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "b.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "b.txt").write_text("two")
    assert list(load(tmp_path / "link").keys) == ["a.png", "b.png"]


def test_captions_in_any_encoding(tmp_path: Path, picture: Picture) -> None:
    texts = {
        "a": b"caf\xe9 noir",
        "b": "ünï".encode("utf-16"),
        "c": b"nul\0 and\ttabs\x0b",
        "d": b"\xff\xfe",
        "e": b"\xef\xbb\xbf",
    }
    for name, content in texts.items():
        fill(tmp_path, {f"{name}.png": picture(1), f"{name}.txt": content})
    fill(tmp_path, {"f.png": picture(2), "metadata.jsonl": '{"file_name": "f.png", "text": "half \\ud83d a pair"}'})
    dataset = load(tmp_path)
    assert samples(dataset) == {
        "a.png": ("café noir",),
        "b.png": ("ünï",),
        "c.png": ("nul and tabs",),
        "f.png": ("half a pair",),
    }
    for own in dataset.captions:
        own[0].encode()


def test_long_captions_are_cut(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "word " * 600_000})
    fill(tmp_path, {"b.png": picture(2), "metadata.jsonl": lines({"file_name": "b.png", "text": "x" * 3_000_000})})
    dataset = load(tmp_path)
    assert [len(own) for own in dataset.captions] == [1, 1]
    assert dataset.captions[0][0] == ("word " * 400).strip()
    assert dataset.captions[1][0] == "x" * MAX_CAPTION


def test_names_that_are_not_utf8(tmp_path: Path, picture: Picture) -> None:
    folder = os.fsencode(tmp_path)
    for name, content in ((b"\xff.png", picture(1)), (b"\xff.txt", b"one"), (b"lone\xfe.png", picture(2))):
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(content)
    (tmp_path / "named-\udcfd.png").write_bytes(picture(3))
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "named-\xfd.png", "text": "two"}')
    dataset = load(tmp_path)
    assert samples(dataset) == {"\\udcff.png": ("one",), "named-\\udcfd.png": ("two",)}
    assert {dataset.read(0), dataset.read(1)} == {picture(1), picture(3)}
    assert problems(dataset) == [("lone\\udcfe.png", "an image without a caption")]


def test_odd_names(tmp_path: Path, picture: Picture) -> None:
    for name in ("with space", "a.b.c", "new\nline", "-rf", "%s", "日本語"):
        fill(tmp_path, {f"{name}.png": picture(1), f"{name}.txt": " ".join(name.split())})
    dataset = load(tmp_path)
    assert samples(dataset) == {
        f"{n}.png": (" ".join(n.split()),) for n in ("-rf", "%s", "a.b.c", "new\nline", "with space", "日本語")
    }


def test_hidden_files_and_folders_are_skipped(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one", "._a.png": b"resource fork", "._a.txt": b"\0"})
    fill(tmp_path, {".git/b.png": picture(2), ".git/b.txt": "two", ".metadata.jsonl": "nonsense"})
    dataset = load(tmp_path)
    assert list(dataset.keys) == ["a.png"] and not dataset.problems


def test_pipes_and_folders_named_like_images(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one", "folder.png/b.png": picture(2), "folder.png/b.txt": "two"})
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.txt")
    dataset = load(tmp_path)
    assert list(dataset.keys) == ["a.png", "folder.png/b.png"]
    assert dict(problems(dataset)) == {"pipe.png": "not a regular file", "pipe.txt": "not a regular file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one", "b.png": picture(2), "b.txt": "two", "c/d.png": picture(3)})
    (tmp_path / "b.txt").chmod(0)
    (tmp_path / "c").chmod(0)
    found = dict(problems(load(tmp_path)))
    assert found["b.txt"] == found["c"] == "cannot be read: Permission denied"
    tmp_path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load(tmp_path)


def test_a_large_file_is_not_read(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one"})
    os.truncate(tmp_path / "a.png", 2**28 + 1)
    with pytest.raises(OSError, match="larger than 256 MiB"):
        load(tmp_path).read(0)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/gone$"):
        load(tmp_path / "gone")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt is not a folder$"):
        load(fill(tmp_path, {"a.txt": ""}) / "a.txt")


def test_an_empty_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"deep/readme.md": "no images"})
    with pytest.raises(UserError, match=r"holds no images: looked for \.jpg, .* in it and the folders below$"):
        load(tmp_path)


def test_images_without_any_caption(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    with pytest.raises(UserError, match=r"^none of the 2 images in .* has a caption .*; wanted is a \.txt"):
        load(tmp_path)
    fill(tmp_path, {"metadata.jsonl": lines({"file": "a.png", "caption": "x"})})
    with pytest.raises(UserError, match=r"metadata\.jsonl:1: no `file_name` with a string; it has file, caption"):
        load(tmp_path)


def test_the_split_depends_on_the_name_alone(tmp_path: Path, picture: Picture) -> None:
    for number in range(100):
        fill(tmp_path, {f"{number}.png": b"", f"{number}.txt": "x"})
    before = {split: set(folder_dataset(tmp_path, split, 0.3).keys) for split in ("train", "heldout")}
    assert 15 <= len(before["heldout"]) <= 45
    for number in range(100, 150):
        fill(tmp_path, {f"{number}.png": b"", f"{number}.txt": "x"})
    for split, keys in before.items():
        assert keys < set(folder_dataset(tmp_path, split, 0.3).keys)


def test_training_is_never_left_without_samples(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "x"})
    assert len(folder_dataset(tmp_path, "train", 0.999999)) == 1
    assert len(folder_dataset(tmp_path, "heldout", 0.999999)) == 0
    assert len(folder_dataset(tmp_path, "heldout", 0.0)) == 0


@given(content=st.binary(max_size=200), name=st.sampled_from(["metadata.jsonl", "metadata.csv", "a.txt"]))
def test_no_content_of_a_text_file_breaks_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = fill(tmp_path_factory.mktemp("any"), {"a.png": b"", "b.png": b"", "b.txt": "fine", name: content})
    dataset = load(folder)
    assert "b.png" in dataset.keys
    for key, own in dataset:
        key.encode()
        assert own and all(caption and caption.encode() for caption in own)
    for where, what in problems(dataset):
        (where + what).encode()


def test_train_and_test_folders_are_the_split(tmp_path: Path, picture: Picture) -> None:
    """A Hugging Face image folder."""
    for number, split in enumerate(("train", "test", "validation")):
        names = [f"{split}{i}.png" for i in range(3)]
        fill(tmp_path / split, {name: picture(10 * number + i) for i, name in enumerate(names)})
        rows = [{"file_name": name, "text": f"a {split} picture"} for name in names]
        fill(tmp_path / split, {"metadata.jsonl": lines(*rows)})
    train, heldout = folder_dataset(tmp_path, "train", 0.9), folder_dataset(tmp_path, "heldout", 0.9)
    assert {own for _, own in train} == {("a train picture",)} and len(train) == 3
    assert {own for _, own in heldout} == {("a test picture",), ("a validation picture",)} and len(heldout) == 6
    assert train.read(1) == picture(1) and heldout.read(0) == picture(10)


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.png.txt", "a.TXT"])
def test_names_of_caption_files(tmp_path: Path, picture: Picture, name: str) -> None:
    fill(tmp_path, {"a.png": picture(1), name: "one"})
    assert samples(load(tmp_path)) == {"a.png": ("one",)}


@pytest.mark.parametrize("name", ["metadata.json1", "metadata.json", "captions.jsonl", "prompts.csv", "A.txt"])
def test_near_misses_of_names_are_told(tmp_path: Path, picture: Picture, name: str) -> None:
    fill(tmp_path, {"a.png": picture(1), name: '{"file_name": "a.png", "text": "one"}'})
    with pytest.raises(UserError, match=f"none of the 1 images in .* has a caption \\({name}: "):
        load(tmp_path)


def test_a_report_of_verify_in_the_folder_is_no_problem(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "a cup"})
    (tmp_path / "verify.jsonl").write_bytes(report(load(tmp_path), [Finding("source", "b.png", NO_CAPTION)]))
    assert not load(tmp_path).problems


def test_img2datasets_lines_are_one_caption(tmp_path: Path, picture: Picture) -> None:
    table = '{"caption": "red car\\nfor sale", "key": "1"}'
    fill(tmp_path, {"1.png": picture(1), "1.txt": "red car\nfor sale", "1.json": table})
    assert samples(load(tmp_path)) == {"1.png": ("red car for sale",)}


def test_a_folder_of_links_says_so(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path / "blobs", {"1": picture(1), "2": "one"})
    (tmp_path / "snap").mkdir()
    for link, name in (("a.png", "1"), ("a.txt", "2")):
        (tmp_path / "snap" / link).symlink_to(tmp_path / "blobs" / name)
    with pytest.raises(UserError, match=r"it has 2 links \(a.png: a link that leaves the folder\).*cp -rL "):
        load(tmp_path / "snap")


def test_captions_that_are_not_utf8_are_told(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "красная".encode("cp1251"), "b.png": picture(2), "b.txt": "two"})
    found = dict(problems(load(tmp_path)))
    assert found["a.png"] == "an image without a caption" and found["a.txt"].startswith("captions that are not UTF-8")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_names_may_be_composed_or_not(form: str, tmp_path: Path, picture: Picture) -> None:
    """macOS takes them apart in the names of files, and captions that are written elsewhere do not."""
    first, second = (unicodedata.normalize(form, name) for name in ("café", "naïve"))
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    caption_file, named = (unicodedata.normalize(other, name) for name in (f"{first}.txt", f"{second}.png"))
    fill(tmp_path, {f"{first}.png": picture(1), caption_file: "a cup", f"{second}.png": picture(2)})
    fill(tmp_path, {"metadata.jsonl": lines({"file_name": named, "text": "a child"})})
    dataset = load(tmp_path)
    assert samples(dataset) == {f"{first}.png": ("a cup",), f"{second}.png": ("a child",)} and not dataset.problems


def test_what_a_run_draws_is_not_read(tmp_path: Path, picture: Picture) -> None:
    """The output folder may be in the folder of images, and a resumed run finds what it has drawn."""
    fill(tmp_path, {"a.png": picture(1), "a.txt": "a cup", "run/config.yaml": "", "run/checkpoints/step/state": ""})
    fill(tmp_path, {"run/samples/step-00000002.png": picture(2), "run/curves.png": picture(3)})
    dataset = load(tmp_path)
    assert samples(dataset) == {"a.png": ("a cup",)}
    assert problems(dataset) == [("run", "the output folder of a run; what a run draws is not read")]
