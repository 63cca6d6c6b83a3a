"""`python -m fastt2i.data`: look after data sets. `pack` writes one out as a folder of images and captions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fastt2i.config import DataFormat, ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status. Raises UserError."""
    arguments = _parse(argv)
    from fastt2i.data.index import Split, open_index
    from fastt2i.data.pack import pack

    # A folder is copied whole unless told otherwise; of the embedded set, what training may see.
    split: Split = arguments.split or ("train" if arguments.data == "shapes" else "all")
    index = open_index(
        arguments.data,
        arguments.format,
        image_size=arguments.image_size or ModelConfig().image_size,
        split=split,
        text_column=arguments.text_column,
    )
    if arguments.limit is not None:
        index = index.first(arguments.limit)
    resized = arguments.image_size if index.name != "shapes" else None  # shapes are drawn in the right size
    problems = [*index.problems, *pack(index, arguments.out, image_size=resized)]
    if index.classes is not None:
        print("the classes of the images are not written: a folder has no place for them", file=sys.stderr)
    for problem in problems[:20]:
        print(f"left out {problem.where}: {problem.what}", file=sys.stderr)
    if len(problems) > 20:
        print(f"left out {len(problems)} in all", file=sys.stderr)
    print(f"wrote {arguments.out}; train on it with: python -m fastt2i.train --data {arguments.out}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fastt2i data", description="Look after data sets.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="command")
    pack = commands.add_parser(
        "pack",
        help="write a data set out as a folder of images with metadata.jsonl",
        description="Write a data set out as a folder of images with metadata.jsonl, which --data takes.",
        allow_abbrev=False,
    )
    pack.add_argument("--data", default="shapes", help="as for training; by default `shapes`, the embedded set")
    pack.add_argument("--format", choices=get_args(DataFormat), default="auto", help="what it holds; `auto` looks")
    pack.add_argument("--text-column", default="", help="column or field that holds the captions")
    pack.add_argument("--out", required=True, type=Path, help="the folder to write; it must be new or empty")
    pack.add_argument(
        "--split",
        choices=("train", "heldout", "all"),
        help="which part; by default `train` of the embedded set, and all of a folder",
    )
    pack.add_argument(
        "--image-size",
        type=_positive,
        help="pixels: images of a folder are cut square and resized to PNG, else copied as they are; "
        f"shapes are drawn in this size ({ModelConfig().image_size} by default)",
    )
    pack.add_argument("--limit", type=_positive, help="samples written at most")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    from fastt2i.cli import run

    sys.exit(run(main))
