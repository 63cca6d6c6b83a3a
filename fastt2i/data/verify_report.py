"""The report of a full check: lines of JSON, the problems first and a summary last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastt2i.data.captions import parse_json
from fastt2i.data.dataset import Dataset, Problem
from fastt2i.errors import UserError
from fastt2i.files.reading import read_file


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file, or with a part of one."""

    kind: str
    """`image`: it cannot be decoded; `shard`: it is not what was packed; `source`: it was left out before."""
    where: str
    what: str


def report(dataset: Dataset, findings: Sequence[Finding]) -> bytes:
    """The findings as lines of JSON, and a last one that sums them up."""
    kinds = Counter(finding.kind for finding in findings)
    reasons = Counter(finding.what.split(":")[0] for finding in findings if finding.kind == "image")
    summary = {
        "kind": "summary",
        "data": dataset.name,
        "images": len(dataset),
        "bad_images": kinds["image"],
        "bad_shards": kinds["shard"],
        "left_out": kinds["source"],
        "reasons": dict(sorted(reasons.items())),
    }
    lines = [*({"kind": f.kind, "where": f.where, "what": f.what} for f in findings), summary]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace")


def is_report(start: bytes) -> bool:
    """Whether a file that starts so may be such a report."""
    return start.startswith(b'{"kind": ')


def without_bad_images(dataset: Dataset, path: str) -> Dataset:
    """A dataset without the images that a report lists as bad, which become its problems.

    Raises UserError: the report cannot be read, is none, or leaves nothing.
    """
    try:
        lines = [parse_json(line) for line in read_file(path).splitlines()]
        bad = {str(line["where"]): str(line["what"]) for line in lines if line["kind"] == "image"}
        complete = bool(lines) and lines[-1]["kind"] == "summary"
    except OSError as error:
        raise UserError(f"the report {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of `python -m fastt2i.data verify`") from error
    if not complete:
        raise UserError(f"{path} is no whole report of `python -m fastt2i.data verify`: its summary is missing")
    left = np.array([key not in bad for key in dataset.keys], dtype=np.bool_)
    if not left.any():
        raise UserError(f"the report {path} lists every image of {dataset.name}")
    problems = [Problem(key, f"{bad[key]} (by {path})") for key in dataset.keys if key in bad]
    return replace(dataset.select(left.nonzero()[0]), problems=[*dataset.problems, *problems])
