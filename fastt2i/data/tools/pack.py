"""Writes any dataset out: what is written of each image, where it goes, and the folder that `folder_dataset` reads."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.data.sources.helpers.folder_files import is_image
from fastt2i.data.tools.parallel import each
from fastt2i.errors import UserError
from fastt2i.files.atomic import move_directory, sync_file
from fastt2i.files.io_errors import classify_io_errors
from fastt2i.files.reading import leaves_folder

LOCK = ".lock"
_EXTENSIONS = {b"\xff\xd8": (".jpg", ".jpeg"), b"\x89PNG": (".png",), b"RIFF": (".webp",), b"BM": (".bmp",)}


@dataclass(frozen=True)
class Content:
    """What is written of a sample: its file as it is, or its pixels as training takes them, as PNG."""

    dataset: Dataset
    decode: Decoder | None

    @classmethod
    def of(cls, dataset: Dataset, image_size: int | None) -> Content:
        """Raises UserError: images are cut to boxes, which copies would not be."""
        if dataset.crops is not None and image_size is None:
            raise UserError(
                f"the images of {dataset.name} are cut to boxes, which copies would not be: give --image-size"
            )
        return cls(dataset, None if image_size is None else Decoder.of(dataset, image_size))

    def each(self, samples: list[int], workers: int) -> Iterator[bytes | str]:
        """The content of each sample's file, or why there is none. workers: processes that decode.

        Raises SystemIOError.
        """
        if self.decode is None:
            return map(self._copy, samples)
        return each(_Png(self.decode), samples, workers=workers, lost="decoding it ends the process that tries")

    def _copy(self, sample: int) -> bytes | str:
        try:
            with classify_io_errors(self.dataset.keys[sample]):
                return self.dataset.read(sample)
        except OSError as error:
            return str(error)


@dataclass(frozen=True)
class _Png:
    decode: Decoder

    def __call__(self, sample: int) -> bytes | str:
        try:
            file = io.BytesIO()
            Image.fromarray(self.decode(sample)).save(file, "PNG")
            return file.getvalue()
        except (BadImage, OSError) as error:
            return str(error)


def extensions(content: bytes) -> tuple[str, ...]:
    """How the name of an image file of this content may end, the usual one first; empty where it is no known format."""
    return next((own for start, own in _EXTENSIONS.items() if content.startswith(start)), ())


@contextmanager
def new_folder(out: Path, *, keep: bool = False) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name when the block ends well, and is removed otherwise.

    keep: leave what is in it to the next attempt, and find it there. Raises UserError: `out` exists and is not empty,
    it cannot be written, or another process is at it.
    """
    target = Path(os.path.abspath(out))
    partial = target.with_name(f".{target.name}.partial")
    try:
        if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: give a new name, or remove it first")
        partial.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(NotImplementedError):  # the file system knows no locks
                stack.enter_context(FileLock(partial / LOCK, timeout=0))
            try:
                if not keep:
                    _clear(partial)
                yield partial
                (partial / LOCK).unlink(missing_ok=True)
                sync_file(partial)
                if target.exists():
                    target.rmdir()
                move_directory(partial, target)
                sync_file(target.parent)
            except BaseException:
                if not keep:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
    except Timeout as error:
        raise UserError(f"another process is writing {out}") from error
    except OSError as error:
        again = "; once that is put right, the same command goes on" if keep and partial.is_dir() else ""
        raise UserError(f"cannot write {out}: {error.strerror or error}{again}") from error


def _clear(folder: Path) -> None:
    """Remove what an attempt that was killed has left."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != LOCK:
            os.unlink(entry.path)


def pack(
    dataset: Dataset, out: Path, *, image_size: int | None = None, workers: int = 0, progress: bool = True
) -> list[Problem]:
    """Write the images and a `metadata.jsonl` to the folder `out`, which then is whole or not there at all.

    image_size: decode, cut square and resize to PNG, in `workers` processes; by default the files are copied as they
    are. Returns the samples that could not be read or decoded, which are left out. Raises UserError: as `new_folder`,
    no sample is left, or the images are cut to boxes, which copies would not be.
    """
    contents = Content.of(dataset, image_size)
    with new_folder(out) as folder:
        return _write(dataset, folder, contents.each(list(range(len(dataset))), workers), progress)


def _write(dataset: Dataset, folder: Path, contents: Iterator[bytes | str], progress: bool) -> list[Problem]:
    problems = []
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as metadata:
        bar = tqdm(
            zip(dataset, contents, strict=True), total=len(dataset), desc="packing", unit="img", disable=not progress
        )
        for (key, captions), content in bar:
            try:
                if isinstance(content, str):
                    raise BadImage(content)
                name = _file_name(key, content)
                file = folder / name
                if os.path.lexists(file):
                    raise BadImage(f"its file would be {name}, which another image has")
            except BadImage as error:
                problems.append(Problem(key, str(error)))
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            metadata.write(json.dumps({"file_name": name, "text": list(captions)}, ensure_ascii=False) + "\n")
        metadata.flush()
        os.fsync(metadata.fileno())
    refuse_nothing(dataset, problems)
    return problems


def refuse_nothing(dataset: Dataset, problems: list[Problem]) -> None:
    """Raise UserError where every sample is a problem."""
    if len(problems) == len(dataset):
        first = f"the first is {problems[0].where}: {problems[0].what}" if problems else "it is empty"
        raise UserError(f"none of the {len(dataset)} images of {dataset.name} can be read; {first}")


def _file_name(key: str, content: bytes) -> str:
    """The key itself where it ends as the content's format does, or as an image where the format is not known."""
    if leaves_folder(key):
        raise BadImage("its name leaves the folder")
    own = extensions(content)
    if key.lower().endswith(own) if own else is_image(key):
        return key
    if not own:
        raise BadImage("not a JPEG, PNG, WebP or BMP image")
    return key + own[0]
