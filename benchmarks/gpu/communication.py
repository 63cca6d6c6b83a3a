"""What a step of several GPUs exchanges, and how long that takes at the rates of links: counted, not measured.

    python -m benchmarks.gpu.communication [--preset NAME ...] [--images B] [--step-ms T]

With `--step-ms`, the measured time of a step of one GPU with B images, it also prints what share of N times the speed
is left if nothing that is exchanged hides behind arithmetic.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastt2i.config import Config
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.model_card import parameter_count
from fastt2i.presets import PRESETS, preset

#: Size of the features of all-MiniLM-L6-v2, the default language model.
TEXT_DIM = 384
FLOAT, ID = 4, 8
#: Bytes a second, one way, by their makers: fourth-generation NVLink of a GPU, and a network link.
LINKS = {"NVLink 450 GB/s": 450e9, "200 Gb/s": 25e9}
GPUS = (8, 64, 512)


class Traffic(NamedTuple):
    """Bytes that every rank sends in a step, and receives, by a ring: gradients of both networks, features of captions
    and gradients of them, and ids and sums of the matching losses."""

    gradients: float
    features: float
    rest: float


def traffic(config: Config, parameters: int, ranks: int, images: int) -> Traffic:
    """Of a step of `ranks` ranks with `images` images each; parameters: of both networks."""
    share, batch = (ranks - 1) / ranks, ranks * images
    keywords = config.text.max_keywords
    floats = keywords * config.model.region_dim + config.model.global_dim
    # Both players gather the captions' features and the keywords' mask; the discriminator's have gradients.
    features = batch * (3 * FLOAT * floats + 2 * keywords)
    # Caption, mismatched caption and class of each image; for each of two losses of two players a maximum and a sum for
    # every caption, and the gradient of the sum.
    ids, sums = 3 * ID * batch, 2 * 2 * 3 * FLOAT * batch
    return Traffic(2 * share * FLOAT * parameters, share * features, share * (ids + 2 * sums))


def region_products(config: Config, ranks: int, images: int) -> int:
    """Multiply-adds of the similarities of a rank's regions with all ranks' keywords, in one forward pass."""
    regions = config.model.region_grid**2
    return images * ranks * images * config.text.max_keywords * regions * config.model.region_dim


def parameters_of(config: Config) -> tuple[int, int]:
    """Of generator and discriminator."""
    generator = Generator(config.model, TEXT_DIM)
    return parameter_count(generator), parameter_count(Discriminator(config.model, TEXT_DIM, TEXT_DIM))


def table(names: Sequence[str], images: int | None, step_ms: float | None) -> Iterator[str]:
    """Lines of a Markdown table; images: of each GPU, the preset's batch by default."""
    head = ["preset", "GPUs", "images", "gradients", "features", "rest", "region products", *LINKS]
    head += [f"of N × the speed, {link}" for link in LINKS] if step_ms else []
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for name in names:
        config = preset(name)
        parameters, own = sum(parameters_of(config)), images or config.train.batch_size
        for ranks in GPUS:
            sent = traffic(config, parameters, ranks, own)
            seconds = [sum(sent) / rate for rate in LINKS.values()]
            row = [name, str(ranks), f"{ranks} × {own}"]
            row += [f"{part / 1e6:.1f} MB" for part in sent]
            row += [f"{region_products(config, ranks, own) / 1e9:.1f} G"]
            row += [f"{1e3 * s:.2f} ms" for s in seconds]
            row += [f"{step_ms / (step_ms + 1e3 * s):.2f}" for s in seconds] if step_ms else []
            yield "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--images", type=int, help="images of each GPU; the preset's batch by default")
    parser.add_argument("--step-ms", type=float, help="measured milliseconds of a step of one GPU with these images")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.preset, arguments.images, arguments.step_ms)))


if __name__ == "__main__":
    main()
