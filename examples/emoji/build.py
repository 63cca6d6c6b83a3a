"""Makes a captioned folder of 3,786 emoji: `python -m examples.emoji.build`.

Pictures are Google's Noto Emoji at 64 x 64 pixels (npm package emoji-datasource-google, Apache-2.0), names and keywords
Unicode's CLDR (npm package emojibase-data, MIT). npm downloads both, some 80 MB; `--package` and `--names` read files
that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from examples.captioned_folder import Picture, build, downloaded, must_be_new
from examples.emoji.captions import captions
from fastt2i.cli import run
from fastt2i.errors import UserError

PICTURES, NAMES = "emoji-datasource-google@16.0.0", "emojibase-data@17.0.0"
LICENCE = """The pictures are of Noto Emoji, (c) Google LLC, under the Apache License 2.0, as packed at 64 x 64 pixels
in the npm package emoji-datasource-google 16.0.0 (code and data MIT, (c) Cal Henderson). Names and keywords are those
of Unicode's CLDR (Unicode License v3), as packed in the npm package emojibase-data 17.0.0 (MIT, (c) Miles Johnson).
The captions are made of these; the pictures are unchanged.
"""


def main() -> None:
    """Read the arguments, and build."""
    parser = argparse.ArgumentParser(prog="python -m examples.emoji.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="the folder to make")
    parser.add_argument("--package", type=Path, help="emoji-datasource-google-*.tgz, in place of a download")
    parser.add_argument("--names", type=Path, help="emojibase-data-*.tgz, in place of a download")
    arguments = parser.parse_args()
    must_be_new(arguments.out)  # before anything is downloaded
    with ExitStack() as stack:
        package = arguments.package or stack.enter_context(downloaded(["npm", "pack", PICTURES], "*.tgz"))
        names = arguments.names or stack.enter_context(downloaded(["npm", "pack", NAMES], "*.tgz"))
        build(arguments.out, read_packages(package, names), share=0.1, licence=LICENCE)


def read_packages(package: Path, names: Path) -> list[Picture]:
    """The emoji that have a picture and a name, in the order of their codes.

    package, names: the .tgz files of the two npm packages. Raises UserError where one cannot be read as such.
    """
    said = _names(_json(names, "package/en/data.json"))
    found: dict[str, Picture] = {}
    images = _members(package, "package/img/google/64/")
    for entry in _json(package, "package/emoji.json"):
        for form in (entry, *entry.get("skin_variations", {}).values()):
            if (code := _code(form["unified"])) in said and form["image"] in images:
                label, tags = said[code]
                texts = captions(label, tags, entry["subcategory"])
                found[code] = Picture(form["image"], texts, images[form["image"]])
    if not found:
        raise UserError(f"{package} and {names} have no emoji in common; they are to be {PICTURES} and {NAMES}")
    return [found[code] for code in sorted(found)]


def _names(rows: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    """Code -> name and keywords; skin tones share the keywords of the emoji that they belong to."""
    return {
        _code(form["hexcode"]): (form["label"], row.get("tags", []))
        for row in rows
        for form in (row, *row.get("skins", []))
    }


def _code(unified: str) -> str:
    """One spelling of an emoji's code points, of which some lists have the mark that asks for a picture, FE0F."""
    return unified.upper().replace("-FE0F", "")


def _json(archive: Path, member: str) -> Any:
    return json.loads(_members(archive, member)[""])


def _members(archive: Path, prefix: str) -> dict[str, bytes]:
    """Contents of the files below a prefix, by the rest of their names."""
    try:
        with tarfile.open(archive) as tar:
            found = {
                info.name.removeprefix(prefix): tar.extractfile(info).read()  # type: ignore[union-attr]
                for info in tar
                if info.isfile() and info.name.startswith(prefix)
            }
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read as an npm package: {error}") from error
    if not found:
        raise UserError(f"{archive} has no {prefix}; it is to be the npm package {PICTURES} or {NAMES}")
    return found


if __name__ == "__main__":
    sys.exit(run(main))
