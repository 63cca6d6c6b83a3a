"""What is said of emoji, and how the two packages are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from examples.emoji.build import read_packages
from examples.emoji.captions import captions, phrase
from fastt2i.errors import UserError


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "red apple"),
        ("man cook: medium-dark skin tone", "man cook with medium-dark skin"),
        ("woman: light skin tone, red hair", "woman with light skin and red hair"),
        ("man: dark skin tone, beard", "man with dark skin and beard"),
        ("woman: bald", "woman with bald head"),
        ("woman running: dark skin tone, facing right", "woman running facing right with dark skin"),
        (
            "woman and man holding hands: dark skin tone, light skin tone",
            "woman and man holding hands with dark and light skin",
        ),
        ("family: man, woman, girl, boy", "family of man, woman, girl and boy"),
        ("kiss: woman, man, light skin tone, dark skin tone", "kiss of woman and man with light and dark skin"),
        ("flag: Bosnia & Herzegovina", "flag of Bosnia & Herzegovina"),
        ("keycap: #", "keycap #"),
    ],
)
def test_a_name_reads_as_one_would_say_it(label: str, said: str) -> None:
    assert phrase(label) == said


def test_keywords_that_the_name_has_are_not_repeated() -> None:
    assert captions("red apple", ["apple", "fruit", "red", "fruit"], "food-fruit") == (
        "red apple",
        "red apple: fruit",
        "red apple, food fruit",
    )
    assert captions("purple circle", ["circle"], "geometric") == ("purple circle", "purple circle, geometric")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_packages_meet_in_their_codes(tmp_path: Path) -> None:
    """Skin tones have keywords and category of their emoji; what has no picture, or no name, is left out."""
    entries = [
        {
            "unified": "270D-FE0F",
            "image": "270d-fe0f.png",
            "subcategory": "hand-prop",
            "skin_variations": {"1F3FB": {"unified": "270D-1F3FB", "image": "270d-1f3fb.png"}},
        },
        {"unified": "1F34E", "image": "lost.png", "subcategory": "food-fruit"},
        {"unified": "1F34F", "image": "270d-fe0f.png", "subcategory": "food-fruit"},
    ]
    names = [
        {"hexcode": "270D", "label": "writing hand", "tags": ["pen"]}
        | {"skins": [{"hexcode": "270D-1F3FB", "label": "writing hand: light skin tone"}]},
        {"hexcode": "1F34E", "label": "red apple"},
    ]
    images = {f"package/img/google/64/{name}.png": name.encode() for name in ("270d-fe0f", "270d-1f3fb")}
    pictures = archive(tmp_path / "a.tgz", {"package/emoji.json": json.dumps(entries).encode(), **images})
    said = archive(tmp_path / "b.tgz", {"package/en/data.json": json.dumps(names).encode()})
    found = read_packages(pictures, said)
    assert [(p.name, p.captions[0], p.content) for p in found] == [
        ("270d-fe0f.png", "writing hand", b"270d-fe0f"),
        ("270d-1f3fb.png", "writing hand with light skin", b"270d-1f3fb"),
    ]
    assert found[1].captions[1:] == ("writing hand with light skin: pen", "writing hand with light skin, hand prop")


def test_what_is_no_such_package_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(b"no archive")
    other = archive(tmp_path / "other.tgz", {"package/readme": b""})
    for file, sentence in ((broken, "cannot be read as an npm package"), (other, "has no package/en/data.json")):
        with pytest.raises(UserError, match=sentence):
            read_packages(file, file)
