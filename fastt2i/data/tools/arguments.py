"""The command line of `python -m fastt2i.data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fastt2i.cli import from_home
from fastt2i.config import DataFormat, ModelConfig, TextConfig
from fastt2i.devices.cores import usable_cores


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options; exits where they are wrong or help is asked for."""
    parser = argparse.ArgumentParser(
        prog="fastt2i data",
        description="Look after data sets: `--data` takes all that training takes.",
        epilog="`fastt2i data COMMAND --help` tells the options of one.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    _add_inspect(commands)
    _add_verify(commands)
    _add_pack(commands)
    return from_home(parser.parse_args(argv), "data", "leave_out", "text_model")


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = _add(commands, "inspect", "tell what a set is like, and draw a contact sheet")
    inspect.add_argument("--out", type=Path, default=Path("contact.png"), help="the contact sheet; %(default)s")
    inspect.add_argument("--images", type=_positive, default=24, help="samples on the contact sheet; %(default)s")
    inspect.add_argument("--text-model", default=TextConfig().model, help="whose keywords are marked; %(default)s")
    inspect.add_argument(
        "--max-keywords", type=_positive, default=TextConfig().max_keywords, help="of a caption; %(default)s"
    )
    inspect.set_defaults(image_size=None, leave_out="")


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = _add(
        commands,
        "verify",
        "decode every image once, and report what is broken",
        " Interrupted, it goes on where it was; run again, it decodes what has changed since. Packed shards are "
        "compared with their digests. The exit status is 0 where nothing is wrong, and 1 where the report lists "
        "anything, be it an image without a caption.",
    )
    verify.add_argument(
        "--out",
        type=Path,
        default=Path("verify.jsonl"),
        help="the report, a line of JSON for each problem; %(default)s",
    )
    verify.add_argument("--afresh", action="store_true", help="decode also what was decoded before and has not changed")
    verify.set_defaults(image_size=None, leave_out="")


def _add_pack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = _add(
        commands,
        "pack",
        "write a set out as WebDataset shards, or as a folder",
        " Image files are copied as they are unless --image-size is given. Interrupted, the same command goes on "
        "after the last whole shard.",
        data="shapes",
    )
    pack.add_argument("--out", required=True, type=Path, help="the folder to write; it must be new or empty")
    pack.add_argument(
        "--to",
        choices=("webdataset", "folder"),
        default="webdataset",
        help="shards with a manifest.json of their digests, or a folder of images with metadata.jsonl; %(default)s",
    )
    pack.add_argument("--shard-samples", type=_positive, default=10_000, help="in a shard at most; %(default)s")
    pack.add_argument("--shard-mb", type=_positive, default=256, help="MiB of a shard at most; %(default)s")
    pack.add_argument(
        "--split", choices=("train", "heldout", "all"), help="which part; by default all, and `train` of `shapes`"
    )
    pack.add_argument(
        "--image-size",
        type=_positive,
        help="pixels: images are cut square and resized to PNG, else copied as they are; "
        f"shapes are drawn in this size ({ModelConfig().image_size} by default)",
    )
    pack.add_argument("--leave-out", default="", help="a report of `verify`, whose bad images are not written")
    pack.add_argument("--limit", type=_positive, help="samples written at most")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    more: str = "",
    data: str | None = None,
) -> argparse.ArgumentParser:
    """A command, with what all have."""
    description = f"{purpose[0].upper()}{purpose[1:]}.{more}"
    command = commands.add_parser(name, help=purpose, description=description, allow_abbrev=False)
    told = f"; `{data}` by default, the embedded set" if data else ""
    command.add_argument("--data", default=data, required=not data, help=f"as for training{told}")
    command.add_argument("--format", choices=get_args(DataFormat), default="auto", help="what it holds; `auto` looks")
    command.add_argument("--text-column", default="", help="column or field that holds the captions")
    command.add_argument(
        "--workers", type=_whole, default=usable_cores(), help="processes that decode, 0 for none; %(default)s"
    )
    return command


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
