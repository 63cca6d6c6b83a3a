"""`python -m fastt2i.export`: a trained model as one file for other software."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastt2i.cli import from_home, plain_warnings, run


@dataclass(kw_only=True)
class Arguments:
    """Write a trained model as one file for other software."""

    model: str
    """Model folder, the run directory that holds one, or `user/name` on the hub."""
    out: Path
    """The file: .onnx for ONNX runtimes, .pt2 for torch.export.load."""
    what: Literal["whole", "generator"] = "whole"
    """`whole` draws from text and has the language model inside; `generator` draws from sentence features."""
    int8: bool = False
    """Round the weights to 8 bits: a quarter of the size, at a loss that is measured and told."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    offline: bool = False
    """Take a model on the hub from its cache, and ask no network."""


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns the exit status."""
    arguments = from_home(tyro.cli(Arguments, args=argv, prog="fastt2i export"), "model")
    plain_warnings()
    from fastt2i.export import export_model
    from fastt2i.models.pretrained import load_pretrained

    model = load_pretrained(arguments.model, revision=arguments.revision, offline=arguments.offline)
    exported = export_model(model, arguments.out, what=arguments.what, int8=arguments.int8)
    difference = exported.facts["difference_from_pipeline"]
    print(f"{exported.path}: {exported.megabytes:.1f} MB, weights {exported.facts['weights']}")
    print(f"  needs    {exported.facts['needs']}")
    for name, meaning in (*exported.facts["inputs"].items(), *exported.facts["outputs"].items()):
        print(f"  {name:15} {meaning}")
    mean, most = difference["mean_levels"], difference["max_levels"]
    print(f"  {difference['images']} images differ from the pipeline's by {mean:.3f} of 255 levels, by {most} at most")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
