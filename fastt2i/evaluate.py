"""`python -m fastt2i.evaluate`: score a trained model on captioned images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastt2i.cli import plain_warnings, run
from fastt2i.config import DataFormat
from fastt2i.errors import UserError

R_PRECISION = """\
r_precision: share of images, one drawn for each caption, whose own caption is the nearest of {candidates}: its own and
others drawn at random from the same set, by the cosine of the image's global feature and the projected sentence
feature, both from the discriminator that was trained with the generator. The generator was trained against these
features, so compare figures of one training set-up only. r_precision_real is the same for the real images: what the
discriminator itself gets right."""
ATTRIBUTES = """\
accuracy_*: share of images in which the colour, shape, size, position and background read back from the pixels are
those of the caption; accuracy_all: all five together."""

SPREAD = """\
spread: how much images of one caption differ, drawn from several noises: the standard deviation over the images, a mean
over captions and pixels, in levels of 255. spread_of_real: the mean absolute difference of two images of a caption as a
multiple of that of two real images of one caption (or class), where the data has such."""


@dataclass(kw_only=True)
class Arguments:
    """Score a trained model: how well do its images follow captions?"""

    model: Path
    """Model folder, or the run directory that holds one."""
    data: str = "shapes"
    """Captioned images, as for training."""
    format: DataFormat = "auto"
    """What the data is, as for training."""
    text_column: str = ""
    """Column or field that holds the captions, as for training."""
    split: Literal["heldout", "train", "all"] = "heldout"
    """Which part of the data: what training never saw, what it saw, or everything."""
    limit: int = 1000
    """Samples used at most."""
    candidates: int = 100
    """Captions that R-precision chooses from."""
    seed: int = 0
    """Seed of the noise and of the candidates."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    out: Path | None = None
    """Also write the scores to this JSON file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, prog="fastt2i evaluate")
    for name in ("limit", "candidates"):
        if getattr(arguments, name) < 2:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be 2 or more")
    plain_warnings()
    scores = _evaluate(arguments)
    for name, value in scores.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print()
    print(R_PRECISION.format(candidates=arguments.candidates))
    print(SPREAD)
    if "accuracy_all" in scores:
        print(ATTRIBUTES)
    if arguments.out:
        try:
            arguments.out.write_text(json.dumps(scores, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {arguments.out}: {error.strerror}") from error
    return 0


def _evaluate(arguments: Arguments) -> dict[str, float | int]:
    import torch

    from fastt2i.config import DataConfig
    from fastt2i.data.decode import BadImage, Decoder
    from fastt2i.data.open import open_dataset
    from fastt2i.devices.selection import choose_device
    from fastt2i.engine.evaluation import CaptionSet
    from fastt2i.metrics.spread import real_distance
    from fastt2i.models.pretrained import load_pretrained
    from fastt2i.pictures.pixels import to_signed

    device = choose_device(arguments.device)
    model = load_pretrained(arguments.model)
    encoder = model.load_text_encoder(device)
    size = model.config.image_size
    # What was held out of a folder depends on the share: take the training's.
    heldout = float(model.facts.get("heldout", DataConfig().heldout))
    whole = open_dataset(
        arguments.data,
        arguments.format,
        image_size=size,
        split="all",
        heldout=heldout,
        text_column=arguments.text_column,
    )
    index = whole.split(arguments.split).head(arguments.limit)
    if not len(index):
        raise UserError(f"nothing of {arguments.data} is held out; score what training saw with --split train")
    decode = Decoder.of(index, size)
    captions, real = [], []
    for number, (_, own) in enumerate(index):
        try:
            real.append(torch.from_numpy(decode(number)))
        except (BadImage, OSError):
            continue
        captions.append(own[0])
    if not captions:
        raise UserError(f"no image of {arguments.data} can be decoded, so there is nothing to score")
    texts = CaptionSet(
        captions,
        encoder(captions),
        noise_dim=model.generator.noise_dim,
        seed=arguments.seed,
        device=device,
        real_distance=real_distance(whole, size),
    )
    images = texts.draw(model.generator.to(device))
    discriminator = model.discriminator.to(device)
    scores: dict[str, float | int] = {"captions": len(captions), "undecodable_images": len(index) - len(captions)}
    scores |= texts.accuracy(images)
    scores |= texts.spread(model.generator)
    scores |= texts.r_precision(images, discriminator, candidates=arguments.candidates)
    real_scores = texts.r_precision(
        to_signed(torch.stack(real)).to(device), discriminator, candidates=arguments.candidates
    )
    return scores | {f"{name}_real": value for name, value in real_scores.items()}


if __name__ == "__main__":
    sys.exit(run(main))
