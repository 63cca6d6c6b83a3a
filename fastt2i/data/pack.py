"""Writes any index out as a folder that `folder_index` reads back."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fastt2i.data.index import Index, Problem
from fastt2i.data.integrity import BadImage, decode
from fastt2i.errors import UserError


def pack(index: Index, out: Path, *, image_size: int | None = None, progress: bool = True) -> list[Problem]:
    """Write the images and a `metadata.jsonl` to the folder `out`, which then is whole or not there at all.

    image_size: decode, cut square and resize to PNG; by default the files are copied as they are.
    Returns the samples that could not be read or decoded, which are left out. Raises UserError: `out` exists and is
    not empty, it cannot be written, or no sample is left.
    """
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
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as metadata:
        for sample, (key, captions) in enumerate(tqdm(index, desc="packing", unit="img", disable=not progress)):
            try:
                content = index.read(sample)
                if image_size is not None:
                    content = _png(content, image_size)
            except (BadImage, OSError) as error:
                problems.append(Problem(key, str(error)))
                continue
            name = key if image_size is None or key.lower().endswith(".png") else f"{key}.png"
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


def _png(content: bytes, image_size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(decode(content, image_size)).save(file, "PNG")
    return file.getvalue()
