"""`python -m fastt2i.data`: `inspect` tells what a set is like, `verify` what is broken, and `pack` writes it out."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastt2i.cli import plain
from fastt2i.config import ModelConfig
from fastt2i.data.tools.arguments import parse
from fastt2i.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from fastt2i.data.dataset import Dataset, Split

#: Bytes that a pixel takes while an image is cut, resized and written.
PIXEL_BYTES = 10
_TOLD = 20  # problems that are shown on the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status. Raises UserError."""
    arguments = parse(argv)
    command = {"inspect": _inspect, "verify": _verify, "pack": _pack}[arguments.command]
    return command(arguments)


def _inspect(arguments: Namespace) -> int:
    from fastt2i.data.tools.inspect import inspect

    dataset = _open(arguments, "all")
    told = inspect(
        dataset,
        arguments.out,
        text_model=arguments.text_model,
        max_keywords=arguments.max_keywords,
        images=arguments.images,
        workers=arguments.workers,
    )
    print(f"{told}\nwrote {arguments.out}")
    return 0


def _verify(arguments: Namespace) -> int:
    from fastt2i.data.tools.verify import verify
    from fastt2i.data.verify_report import report
    from fastt2i.files.atomic import replace_file
    from fastt2i.files.io_errors import writing

    out: Path = arguments.out
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"cannot write {out}: name a file in a folder that is there with --out")
    dataset = _open(arguments, "all")
    try:
        findings = verify(dataset, workers=arguments.workers, afresh=arguments.afresh)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    with writing(out):
        replace_file(out, report(dataset, findings))
    for finding in findings[:_TOLD]:
        print(plain(f"{finding.where}: {finding.what}"), file=sys.stderr)
    kinds = Counter(finding.kind for finding in findings)
    bad = [f"{kinds['image']} that cannot be decoded"]
    bad += [f"{kinds['shard']} shards that are not what was packed"] if kinds["shard"] else []
    bad += [f"{kinds['source']} left out for other reasons"] if kinds["source"] else []
    print(f"{dataset.name}: {len(dataset)} images, {', '.join(bad)}; the report is in {out}")
    return 1 if findings else 0


def _pack(arguments: Namespace) -> int:
    from fastt2i.data.tools.pack import pack
    from fastt2i.data.tools.pack_shards import pack_shards

    _check_image_size(arguments)
    # A set is copied whole unless told otherwise; of the embedded one, what training may see.
    dataset = _open(arguments, arguments.split or ("train" if arguments.data == "shapes" else "all"))
    if arguments.limit is not None:
        dataset = dataset.head(arguments.limit)
    resized = arguments.image_size if dataset.name != "shapes" else None  # shapes are drawn in the right size
    if arguments.to == "folder":
        left_out = pack(dataset, arguments.out, image_size=resized, workers=arguments.workers)
        if dataset.classes is not None:
            print("the classes of the images are not written: a folder has no place for them", file=sys.stderr)
    else:
        try:
            left_out = pack_shards(
                dataset,
                arguments.out,
                image_size=resized,
                shard_samples=arguments.shard_samples,
                shard_mb=arguments.shard_mb,
                workers=arguments.workers,
            )
        except KeyboardInterrupt:
            print("interrupted; the same command goes on after the last whole shard", file=sys.stderr)
            raise
    problems = [*dataset.problems, *left_out]
    for problem in problems[:_TOLD]:
        print(plain(f"left out {problem.where}: {problem.what}"), file=sys.stderr)
    if len(problems) > _TOLD:
        print(f"left out {len(problems)} in all", file=sys.stderr)
    print(f"wrote {arguments.out}; train on it with: python -m fastt2i.train --data {arguments.out}")
    return 0


def _check_image_size(arguments: Namespace) -> None:
    """Raise UserError where images would be too large to be read again, or for the memory that each process takes."""
    from fastt2i.data.decode import MAX_PIXELS
    from fastt2i.devices.free_memory import check_memory

    size, processes = arguments.image_size or 0, max(1, arguments.workers)
    if size > (largest := math.isqrt(MAX_PIXELS)):
        raise UserError(f"--image-size is {size}; it must be {largest} or less, or the images would not be read again")
    check_memory(
        processes * size**2 * PIXEL_BYTES, f"images of {size} x {size} pixels in {processes} processes", "take fewer"
    )


def _open(arguments: Namespace, split: Split) -> Dataset:
    from fastt2i.data.open import open_dataset

    return open_dataset(
        arguments.data,
        arguments.format,
        image_size=arguments.image_size or ModelConfig().image_size,
        split=split,
        text_column=arguments.text_column,
        leave_out=arguments.leave_out,
    )


if __name__ == "__main__":
    from fastt2i.cli import run

    sys.exit(run(main))
