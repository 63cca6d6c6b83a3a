"""`python -m fastt2i.generate`: draw images from prompts with a trained model."""

from __future__ import annotations

import mimetypes
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from fastt2i.cli import from_home, plain_warnings, run
from fastt2i.errors import UserError
from fastt2i.files.atomic import write_output
from fastt2i.files.io_errors import writing
from fastt2i.pictures.formats import FORMATS

if TYPE_CHECKING:
    from PIL import Image

    from fastt2i.pipeline import TextToImagePipeline

#: Images of a sheet: 32 rows of 8.
LARGEST_SHEET = 256
#: Seconds of an animation: a GIF shows no frame for more than eleven minutes.
LONGEST = 600


@dataclass(kw_only=True)
class Arguments:
    """Draw what prompts say."""

    model: str
    """Model folder, the run directory that holds one, or `user/name` on the hub."""
    prompt: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """What to draw; may be given several times."""
    prompts: Path | None = None
    """A file with a prompt a line, for a folder. A prompt's seed is --seed plus its number in the file."""
    out: Path
    """A picture file (.png, .jpg, .webp), for one image or for a sheet of several, 256 at most; with --frames also a
    .gif. Or a folder, for a file each: without --frames they are written as they are drawn, a metadata.jsonl says what
    each is, and the same command goes on where it was stopped."""
    num: int = 1
    """Images of each prompt: to a folder as many as you like, memory does not grow with them."""
    seed: int = 0
    """Seed of the noise: the same seed gives the same images."""
    truncation: float = 1.0
    """Factor of the noise: below 1 images are more typical and less varied."""
    best_of: int | None = None
    """Draw so many of each prompt, all of which memory has to hold, and keep those that the model's own discriminator
    scores highest."""
    negative_prompt: str = ""
    """With --best-of: how well an image matches this is taken off its score."""
    frames: int = 0
    """Draw so many images on the way from the first --prompt to the second, or from --seed to --to-seed."""
    to_seed: int | None = None
    """With --frames: seed of the last one's noise."""
    seconds: float = 2.0
    """With --frames: how long a .gif takes from the first one to the last."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the networks multiply in."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    offline: bool = False
    """Take a model on the hub from its cache, and ask no network."""


def main(argv: Sequence[str] | None = None) -> int:
    """Generate; returns the exit status."""
    arguments = from_home(tyro.cli(Arguments, args=argv, prog="fastt2i generate"), "model")
    _check(arguments)
    plain_warnings()
    import torch

    from fastt2i.devices.selection import choose_device
    from fastt2i.pipeline import TextToImagePipeline

    pipeline = TextToImagePipeline.from_pretrained(
        arguments.model,
        choose_device(arguments.device),
        getattr(torch, arguments.dtype),
        revision=arguments.revision,
        offline=arguments.offline,
    )
    with writing(arguments.out):
        if not arguments.frames and not _is_picture(arguments.out):
            print(_draw_folder(pipeline, arguments))
            return 0
        images, captions = _frames(pipeline, arguments) if arguments.frames else _images(pipeline, arguments)
        written = _write(images, captions, arguments)
    for path in written:
        print(path)
    return 0


def _check(arguments: Arguments) -> None:
    if not arguments.prompt and arguments.prompts is None:
        raise UserError("there is nothing to draw; say what with --prompt or --prompts")
    if arguments.prompts is not None:
        if arguments.prompt or arguments.frames:
            raise UserError("--prompts goes neither with --prompt nor with --frames")
        if _is_picture(arguments.out):
            raise UserError(f"{arguments.out} is a picture; the images of --prompts go to a folder")
    if str(arguments.out) == "-":
        raise UserError("--out is -, but images go to no standard output; name a file as image.png, or a folder")
    if arguments.out.suffix.lower() not in {*FORMATS, ".gif"} and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"{arguments.out} is a file and no picture; name one as image.png, or a folder")
    kind, _ = mimetypes.guess_type(arguments.out.name)
    if kind and kind.startswith(("image/", "video/")) and arguments.out.suffix.lower() not in {*FORMATS, ".gif"}:
        raise UserError(f"{arguments.out} is none of {', '.join(sorted(FORMATS))}; name one of these, or a folder")
    count = arguments.frames or len(arguments.prompt) * arguments.num
    if _is_picture(arguments.out) and arguments.out.suffix.lower() != ".gif" and count > LARGEST_SHEET:
        raise UserError(
            f"{arguments.out} would be a sheet of {count:,} images, and one can be read up to {LARGEST_SHEET}; "
            "ask for fewer, or name a folder with --out"
        )
    if not arguments.frames:
        if arguments.out.suffix.lower() == ".gif":
            raise UserError(f"{arguments.out} is an animation; say with --frames how many images it has")
        if arguments.to_seed is not None:
            raise UserError("--to-seed is where --frames leads to; say with --frames how many images there are")
        return
    if len(arguments.prompt) > 2 or (len(arguments.prompt) == 1 and arguments.to_seed is None):
        raise UserError("--frames leads from one --prompt to another, or from --seed to --to-seed; give two of either")
    if arguments.num != 1 or arguments.best_of is not None or arguments.negative_prompt:
        raise UserError("--num, --best-of and --negative-prompt choose among images; they do not go with --frames")
    if not 0 < arguments.seconds <= LONGEST:
        raise UserError(f"--seconds is {arguments.seconds}; it must be more than 0 and at most {LONGEST}")


def _is_picture(out: Path) -> bool:
    return out.suffix.lower() in {*FORMATS, ".gif"} and not out.is_dir()


def _draw_folder(pipeline: TextToImagePipeline, arguments: Arguments) -> str:
    """Draw all prompts into the folder --out; returns what was done in a sentence."""
    from fastt2i.image_folder import ImageFolder
    from fastt2i.request import Request
    from fastt2i.text.prompts import read_prompts

    notes: list[str] = []

    def requests() -> Iterator[Request]:
        given, step = (arguments.prompt, 0) if arguments.prompts is None else (read_prompts(arguments.prompts), 1)
        for place, prompt in enumerate(given):
            notes.extend(f"prompt {place + 1} {note}" for note in pipeline.notes(prompt))
            yield Request(
                prompt=prompt,
                seed=arguments.seed + place * step,
                num=arguments.num,
                truncation=arguments.truncation,
                best_of=arguments.best_of,
                negative_prompt=arguments.negative_prompt,
            )

    drawn, before = ImageFolder(arguments.out, pipeline).draw(requests())
    if notes:
        warnings.warn(notes[0] + (f"; {len(notes) - 1} more are such" if len(notes) > 1 else ""), stacklevel=2)
    return f"{drawn} images in {arguments.out}" + (f", {before} of them from before" if before else "")


def _images(pipeline: TextToImagePipeline, arguments: Arguments) -> tuple[list[Image.Image], list[str]]:
    images = pipeline(
        arguments.prompt,
        seed=arguments.seed,
        num=arguments.num,
        truncation=arguments.truncation,
        best_of=arguments.best_of,
        negative_prompt=arguments.negative_prompt,
    )
    return images, [prompt for prompt in arguments.prompt for _ in range(arguments.num)]


def _frames(pipeline: TextToImagePipeline, arguments: Arguments) -> tuple[list[Image.Image], list[str]]:
    images = pipeline.interpolate(
        arguments.prompt[0],
        arguments.prompt[-1],
        arguments.frames,
        seed=arguments.seed,
        seed_b=arguments.to_seed,
        truncation=arguments.truncation,
    )
    return images, [f"frame {number}" for number in range(1, len(images) + 1)]


def _write(images: Sequence[Image.Image], captions: Sequence[str], arguments: Arguments) -> list[Path]:
    out: Path = arguments.out
    if _is_picture(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_picture(images, captions, out, arguments.seconds)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        paths.append(out / f"{number:03d}-{caption.replace(' ', '-')}.png")
        _write_picture([image], [caption], paths[-1], arguments.seconds)
    return paths


def _write_picture(images: Sequence[Image.Image], captions: Sequence[str], out: Path, seconds: float) -> None:
    """One image, a sheet of several, or an animation; a PNG says what it is."""
    from fastt2i.pictures.pixels import encoded, gif

    suffix = out.suffix.lower()
    if suffix == ".gif":
        write_output(out, gif(images, seconds))
        return
    picture = images[0]
    if len(images) > 1:
        from fastt2i.pictures.grids import sample_grid

        picture = sample_grid(images, captions)
        picture.info |= {"prompt": "\n".join(dict.fromkeys(captions))}
        picture.info |= {name: images[0].info[name] for name in ("seed", "model", "software")}
    write_output(out, encoded(picture, suffix))


if __name__ == "__main__":
    sys.exit(run(main))
