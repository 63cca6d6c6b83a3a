"""What is said of stamps, and how the package is read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from examples.stamps.build import captions, read_package
from fastt2i.errors import UserError


def test_the_english_sentence_comes_first_and_the_folder_adds_words() -> None:
    content = b"A mushroom.\nde.utf8=Ein Pilz.\n"
    assert captions(content, PurePosixPath("food/fungi/cartoon")) == ("A mushroom", "A mushroom, food fungi cartoon")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not there")
def test_a_package_is_read(tmp_path: Path) -> None:
    """What has no sentence beside it is left out; other files of the package do not count."""
    root = tmp_path / "package"
    control = root / "DEBIAN" / "control"
    files = {
        "usr/share/tuxpaint/stamps/animals/cat.png": b"cat",
        "usr/share/tuxpaint/stamps/animals/cat.txt": b"A cat.\n",
        "usr/share/tuxpaint/stamps/animals/cat_mirror.png": b"mirrored",
        "usr/share/doc/stamps/logo.png": b"logo",
        "usr/share/doc/stamps/logo.txt": b"A logo.\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    control.parent.mkdir()
    control.write_text(
        "Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: d\n"
    )
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "stamps.deb"], check=True, capture_output=True)
    (found,) = read_package(tmp_path / "stamps.deb")
    assert (found.name, found.captions, found.content) == ("animals-cat.png", ("A cat", "A cat, animals"), b"cat")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not there")
def test_what_is_no_such_package_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_bytes(b"no archive")
    with pytest.raises(UserError, match="broken.deb cannot be read: "):
        read_package(broken)
