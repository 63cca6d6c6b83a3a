"""Captions in metadata.jsonl and metadata.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastt2i.data.sources.folder import folder_dataset
from fastt2i.errors import UserError
from tests.unit.data.sources.folders import Picture, fill, lines, load, problems, samples

ANY = "`text` (or caption, captions, prompt)"


def test_jsonl(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "in/b.png": picture(2), "c.png": picture(3)})
    rows = lines(
        {"file_name": "in/b.png", "text": ["two", "zwei"], "class": 7},
        {"file_name": "./a.png", "text": "one"},
        {"file_name": "c.png", "text": "three"},
        {"file_name": "c.png", "text": "drei"},
    )
    fill(tmp_path, {"metadata.jsonl": "\ufeff" + rows.replace("\n", "\r\n") + "\r\n"})
    assert list(load(tmp_path)) == [("a.png", ("one",)), ("c.png", ("three", "drei")), ("in/b.png", ("two", "zwei"))]
    assert not load(tmp_path).problems


def test_csv(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    fill(tmp_path, {"metadata.csv": '\ufefftext, file_name\r\n"one, with\na break",a.png\r\n\r\ntwo,b.png\r\n'})
    dataset = load(tmp_path)
    assert list(dataset) == [("a.png", ("one, with a break",)), ("b.png", ("two",))]
    assert not dataset.problems


def test_a_quote_that_is_not_closed_takes_no_other_rows_for_its_caption(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {f"{name}.png": picture(1) for name in "abcd"})
    rows = 'file_name,text\na.png,"a red bird\nb.png,a dog\nc.png,"a cat"\nd.png,a 5" fish\n'
    fill(tmp_path, {"metadata.csv": rows})
    dataset = load(tmp_path)
    assert samples(dataset) == {"d.png": ('a 5" fish',)}
    assert problems(dataset)[0] == ("metadata.csv:4", "not CSV: ',' expected after '\"'")


def test_metadata_of_a_nested_folder_is_relative_to_it(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "x/a.png": picture(2), "x/y/a.png": picture(3)})
    fill(tmp_path, {"metadata.csv": "file_name,text\na.png,top\n"})
    fill(
        tmp_path,
        {"x/metadata.jsonl": lines({"file_name": "a.png", "text": "x"}, {"file_name": "y/a.png", "text": "y"})},
    )
    assert samples(load(tmp_path)) == {"a.png": ("top",), "x/a.png": ("x",), "x/y/a.png": ("y",)}


def test_bad_lines_of_jsonl(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "notes.md": "x"})
    good = {"file_name": "a.png", "text": "one"}
    bad = [
        '{"file_name": "a.png", "text": ',
        "[" * 100_000,
        "[1]",
        '{"text": "no name"}',
        '{"file_name": 3, "text": "x"}',
        '{"file_name": "a.png", "label": "x"}',
        '{"file_name": "a.png", "text": ["x", 3]}',
        '{"file_name": "gone.png", "text": "x"}',
        '{"file_name": "notes.md", "text": "x"}',
        '{"file_name": "", "text": "x"}',
        '{"file_name": "\\ud800.png", "text": "x"}',
    ]
    fill(tmp_path, {"metadata.jsonl": lines(good) + "\n".join(bad) + "\n" + lines(good | {"text": "two"})})
    dataset = load(tmp_path)
    assert list(dataset) == [("a.png", ("one", "two"))]
    found = dict(problems(dataset))
    assert [f"metadata.jsonl:{number}" for number in range(2, 2 + len(bad))] == list(found)
    assert found["metadata.jsonl:2"].startswith("not JSON: ")
    assert found["metadata.jsonl:4"] == "not a JSON object but list"
    assert found["metadata.jsonl:7"] == f"no {ANY} with a string or a list of strings; it has file_name, label"
    assert found["metadata.jsonl:9"] == "there is no file gone.png"
    assert found["metadata.jsonl:10"] == "notes.md is none of .jpg, .jpeg, .png, .webp, .bmp"
    for where, what in problems(dataset):
        (where + what).encode()


def test_bad_lines_of_csv(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    rows = f'a.png,one\nb.png\nb.png,"{"x" * 200_000}"\nb.png,two\ngone.png,three\n'
    fill(tmp_path, {"metadata.csv": "file_name,text\n" + rows})
    dataset = load(tmp_path)
    assert list(dataset) == [("a.png", ("one",)), ("b.png", ("two",))]
    assert [where for where, _ in problems(dataset)] == ["metadata.csv:3", "metadata.csv:4", "metadata.csv:6"]


def test_csv_without_the_columns(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(1), "a.txt": "one", "metadata.csv": "file;caption\na.png;x\n"})
    assert problems(load(tmp_path)) == [
        ("metadata.csv", f"its first line must name the columns file_name and {ANY}; it has file;caption")
    ]


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname.png", "x/../../outside.png", "x/.././../outside.png"]
)
def test_metadata_cannot_leave_the_folder(tmp_path: Path, picture: Picture, name: str) -> None:
    folder = fill(tmp_path, {"outside.png": picture(1), "in/a.png": picture(2), "in/a.txt": "one"}) / "in"
    fill(folder, {"metadata.jsonl": lines({"file_name": name, "text": "stolen"})})
    dataset = load(folder)
    assert list(dataset) == [("a.png", ("one",))]
    assert problems(dataset) == [("metadata.jsonl:1", f"{name} leaves the folder")]


def test_the_captions_column_can_be_named(tmp_path: Path, picture: Picture) -> None:
    rows = lines({"file_name": "a.png", "caption": "by default", "title": ["named", "also"]})
    fill(tmp_path, {"a.png": picture(1), "metadata.jsonl": rows, "b/b.png": picture(2)})
    fill(tmp_path, {"b/metadata.csv": "title,prompt,file_name\nnamed,by default,b.png\n"})
    assert samples(load(tmp_path)) == {"a.png": ("by default",), "b/b.png": ("by default",)}
    named = folder_dataset(tmp_path, "all", text_column="title")
    assert samples(named) == {"a.png": ("named", "also"), "b/b.png": ("named",)}
    with pytest.raises(UserError, match="no `nonsense` with a string or a list of strings; it has file_name, caption"):
        folder_dataset(tmp_path, "all", text_column="nonsense")


@pytest.mark.parametrize("name", ["images\\a.png", "{root}/images/a.png", "images/a.png", "a.png"])
def test_names_in_metadata(tmp_path: Path, picture: Picture, name: str) -> None:
    """With backslashes, absolute, relative to the whole folder or to the metadata file."""
    line = {"file_name": name.format(root=tmp_path), "text": "one"}
    fill(tmp_path, {"images/a.png": picture(1), "images/metadata.jsonl": lines(line)})
    assert samples(load(tmp_path)) == {"images/a.png": ("one",)} and problems(load(tmp_path)) == []


def test_the_first_column_with_a_caption_counts(tmp_path: Path, picture: Picture) -> None:
    table = "file_name,text,caption\na.png,,real\nb.png,one,two\n"
    fill(tmp_path, {"a.png": picture(1), "b.png": picture(2), "metadata.csv": table})
    assert samples(load(tmp_path)) == {"a.png": ("real",), "b.png": ("one",)}
