"""`python -m fastt2i.generate`: draw images from prompts with a trained model."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from fastt2i.cli import plain_warnings, run
from fastt2i.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(kw_only=True)
class Arguments:
    """Draw what prompts say."""

    model: Path
    """Model folder, or the run directory that holds one."""
    prompt: tyro.conf.UseAppendAction[list[str]]
    """What to draw; may be given several times."""
    out: Path
    """A picture file (.png, .jpg, .webp), for one image or for a sheet of several; or a folder, for a file each."""
    num: int = 1
    """Images of each prompt."""
    seed: int = 0
    """Seed of the noise: the same seed gives the same images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Generate; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, prog="fastt2i generate")
    if not arguments.prompt:
        raise UserError("there is nothing to draw; say what with --prompt")
    plain_warnings()
    from fastt2i.devices.selection import choose_device
    from fastt2i.pipeline import TextToImagePipeline

    pipeline = TextToImagePipeline.from_pretrained(arguments.model, device=choose_device(arguments.device))
    images = pipeline(arguments.prompt, seed=arguments.seed, num=arguments.num)
    try:
        written = _write(images, [p for p in arguments.prompt for _ in range(arguments.num)], arguments)
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error.strerror or error}") from error
    for path in written:
        print(path)
    return 0


def _write(images: Sequence[Image.Image], captions: Sequence[str], arguments: Arguments) -> list[Path]:
    out: Path = arguments.out
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        from fastt2i.pictures.grids import sample_grid

        out.parent.mkdir(parents=True, exist_ok=True)
        picture = images[0] if len(images) == 1 else sample_grid(images, captions)
        picture.save(out)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        name = re.sub(r"\W+", "-", caption.lower()).strip("-")[:60]
        paths.append(out / f"{number:03d}-{name}.png")
        image.save(paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(run(main))
