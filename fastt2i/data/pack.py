"""Writes any index out as a folder that `folder_index` reads back."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from fastt2i.data.index import Index, Problem
from fastt2i.data.integrity import BadImage, Decoder
from fastt2i.data.sources.files import is_image, leaves
from fastt2i.errors import UserError

_EXTENSIONS = {b"\xff\xd8": (".jpg", ".jpeg"), b"\x89PNG": (".png",), b"RIFF": (".webp",), b"BM": (".bmp",)}


def pack(index: Index, out: Path, *, image_size: int | None = None, progress: bool = True) -> list[Problem]:
    """Write the images and a `metadata.jsonl` to the folder `out`, which then is whole or not there at all.

    image_size: decode, cut square and resize to PNG; by default the files are copied as they are.
    Returns the samples that could not be read or decoded, which are left out. Raises UserError: `out` exists and is
    not empty, it cannot be written, no sample is left, or the images are cut to boxes, which copies would not be.
    """
    if index.crops is not None and image_size is None:
        raise UserError(f"the images of {index.name} are cut to boxes, which copies would not be: give --image-size")
    target = Path(os.path.abspath(out))
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: give a new name, or remove it first")
        try:
            partial.mkdir(parents=True)
            problems = _write(index, partial, image_size, progress)
            if target.exists():
                target.rmdir()
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return problems


def _write(index: Index, folder: Path, image_size: int | None, progress: bool) -> list[Problem]:
    problems = []
    decode = None if image_size is None else Decoder.of(index, image_size)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as metadata:
        for sample, (key, captions) in enumerate(tqdm(index, desc="packing", unit="img", disable=not progress)):
            try:
                content = index.read(sample) if decode is None else _png(decode(sample))
                name = _file_name(key, content)
            except (BadImage, OSError) as error:
                problems.append(Problem(key, str(error)))
                continue
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            metadata.write(json.dumps({"file_name": name, "text": list(captions)}, ensure_ascii=False) + "\n")
        metadata.flush()
        os.fsync(metadata.fileno())
    if len(problems) == len(index):
        first = f"the first is {problems[0].where}: {problems[0].what}" if problems else "it is empty"
        raise UserError(f"none of the {len(index)} images of {index.name} can be read; {first}")
    return problems


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _file_name(key: str, content: bytes) -> str:
    """The key itself where it ends as the content's format does, or as an image where the format is not known."""
    if leaves(key):
        raise BadImage("its name leaves the folder")
    extensions = next((own for start, own in _EXTENSIONS.items() if content.startswith(start)), ())
    if key.lower().endswith(extensions) if extensions else is_image(key):
        return key
    if not extensions:
        raise BadImage("not a JPEG, PNG, WebP or BMP image")
    return key + extensions[0]
