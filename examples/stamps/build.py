"""Makes a captioned folder of 785 photographs and drawings: `python -m examples.stamps.build`.

They are Tux Paint's stamps (Debian package tuxpaint-stamps-default; GPL-2 or later, single ones under other licences),
each with a sentence that tells children what it is. apt downloads the package, some 160 MB; `--package` reads one that
is there.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from examples.captioned_folder import Picture, build, downloaded, must_be_new
from fastt2i.cli import run
from fastt2i.errors import UserError

PACKAGE = "tuxpaint-stamps-default"
_STAMPS = PurePosixPath("usr/share/tuxpaint/stamps")
LICENCE = """The pictures and their sentences are Tux Paint's stamps, as Debian packs them in tuxpaint-stamps-default:
(c) 2002-2022 by Bill Kendrick and the contributors that the package names, under the GNU General Public License 2 or
later, single ones under other licences (the copyright file in the package has them). Look there before you pass any on.
"""


def main() -> None:
    """Read the arguments, and build."""
    parser = argparse.ArgumentParser(prog="python -m examples.stamps.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/stamps"), help="the folder to make")
    parser.add_argument("--package", type=Path, help=f"{PACKAGE}_*.deb, in place of a download")
    arguments = parser.parse_args()
    must_be_new(arguments.out)  # before anything is downloaded
    with ExitStack() as stack:
        download = downloaded(["apt-get", "download", PACKAGE], f"{PACKAGE}_*.deb")
        package = arguments.package or stack.enter_context(download)
        build(arguments.out, read_package(package), share=0.1, licence=LICENCE)


def read_package(package: Path) -> list[Picture]:
    """The stamps that have a sentence beside them, in the order of their names.

    package: the .deb file. Raises UserError where it cannot be read as such.
    """
    files = {path.relative_to(_STAMPS): content for path, content in _files(package).items()}
    pictures = []
    for path in sorted(files):
        sentence = files.get(path.with_suffix(".txt"))
        if path.suffix == ".png" and sentence is not None:
            pictures.append(Picture("-".join(path.parts), captions(sentence, path.parent), files[path]))
    if not pictures:
        raise UserError(f"{package} has no stamps; it is to be the Debian package {PACKAGE}")
    return pictures


def captions(sentences: bytes, folder: PurePosixPath) -> tuple[str, ...]:
    """The English sentence, which is the first line of several languages', alone and with the words of the folder."""
    english = sentences.decode("utf-8", errors="replace").splitlines()[0].strip().rstrip(".")
    return english, f"{english}, {' '.join(dict.fromkeys(folder.parts))}"


def _files(package: Path) -> dict[PurePosixPath, bytes]:
    """Contents of the package's stamps and their sentences."""
    try:
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(
            "dpkg-deb is not installed; it comes with Debian and its relatives, in the package dpkg"
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{package} cannot be read: {error.stderr.decode(errors='replace').strip()}") from error
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = ((PurePosixPath(info.name), info) for info in tar if info.isfile())
        wanted = ((path, info) for path, info in members if path.is_relative_to(_STAMPS))
        return {path: tar.extractfile(info).read() for path, info in wanted if path.suffix in (".png", ".txt")}  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(run(main))
