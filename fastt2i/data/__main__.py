"""`python -m fastt2i.data`: `inspect` tells what a set is like, `verify` what is broken, and `pack` writes it out."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fastt2i.cli import plain
from fastt2i.config import DataFormat, ModelConfig, TextConfig
from fastt2i.errors import UserError

if TYPE_CHECKING:
    from fastt2i.data.dataset import Dataset, Split

_TOLD = 20  # problems that are shown on the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status. Raises UserError."""
    arguments = _parse(argv)
    command = {"inspect": _inspect, "verify": _verify, "pack": _pack}[arguments.command]
    return command(arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    from fastt2i.data.tools.inspect import inspect

    index = _open(arguments, "all")
    told = inspect(
        index,
        arguments.out,
        text_model=arguments.text_model,
        max_keywords=arguments.max_keywords,
        images=arguments.images,
        workers=arguments.workers,
    )
    print(f"{told}\nwrote {arguments.out}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from fastt2i.data.tools.verify import verify
    from fastt2i.data.verify_report import report
    from fastt2i.files.atomic import replace_file

    out: Path = arguments.out
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"cannot write {out}: name a file in a folder that is there with --out")
    index = _open(arguments, "all")
    try:
        findings = verify(index, workers=arguments.workers, afresh=arguments.afresh)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    try:
        replace_file(out, report(index, findings))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    for finding in findings[:_TOLD]:
        print(plain(f"{finding.where}: {finding.what}"), file=sys.stderr)
    kinds = Counter(finding.kind for finding in findings)
    bad = [f"{kinds['image']} that cannot be decoded"]
    bad += [f"{kinds['shard']} shards that are not what was packed"] if kinds["shard"] else []
    bad += [f"{kinds['source']} left out for other reasons"] if kinds["source"] else []
    print(f"{index.name}: {len(index)} images, {', '.join(bad)}; the report is in {out}")
    return 1 if findings else 0


def _pack(arguments: argparse.Namespace) -> int:
    from fastt2i.data.tools.pack import pack
    from fastt2i.data.tools.pack_shards import pack_shards

    # A set is copied whole unless told otherwise; of the embedded one, what training may see.
    index = _open(arguments, arguments.split or ("train" if arguments.data == "shapes" else "all"))
    if arguments.limit is not None:
        index = index.head(arguments.limit)
    resized = arguments.image_size if index.name != "shapes" else None  # shapes are drawn in the right size
    if arguments.to == "folder":
        left_out = pack(index, arguments.out, image_size=resized, workers=arguments.workers)
        if index.classes is not None:
            print("the classes of the images are not written: a folder has no place for them", file=sys.stderr)
    else:
        try:
            left_out = pack_shards(
                index,
                arguments.out,
                image_size=resized,
                shard_samples=arguments.shard_samples,
                shard_mb=arguments.shard_mb,
                workers=arguments.workers,
            )
        except KeyboardInterrupt:
            print("interrupted; the same command goes on after the last whole shard", file=sys.stderr)
            raise
    problems = [*index.problems, *left_out]
    for problem in problems[:_TOLD]:
        print(plain(f"left out {problem.where}: {problem.what}"), file=sys.stderr)
    if len(problems) > _TOLD:
        print(f"left out {len(problems)} in all", file=sys.stderr)
    print(f"wrote {arguments.out}; train on it with: python -m fastt2i.train --data {arguments.out}")
    return 0


def _open(arguments: argparse.Namespace, split: Split) -> Dataset:
    from fastt2i.data.open import open_dataset

    return open_dataset(
        arguments.data,
        arguments.format,
        image_size=arguments.image_size or ModelConfig().image_size,
        split=split,
        text_column=arguments.text_column,
        leave_out=arguments.leave_out,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
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
    return parser.parse_args(argv)


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
        "--workers", type=_whole, default=os.cpu_count() or 1, help="processes that decode, 0 for none; %(default)s"
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


if __name__ == "__main__":
    from fastt2i.cli import run

    sys.exit(run(main))
