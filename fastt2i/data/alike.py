"""Which images of a set are alike: what tells how much images of one caption differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.dataset import Dataset
from fastt2i.data.hashing import hash64


def groups_of_alike(dataset: Dataset) -> Iterator[NDArray[np.int64]]:
    """Places of samples that share a caption; where most captions have one image alone, of those that share a class.

    Groups come in an order that depends on their number alone, each of two samples or more; none at all where neither
    is shared.
    """
    table = dataset.caption_table()
    owners = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    groups = _groups(table.ids, owners)
    if not groups and dataset.classes is not None:
        groups = _groups(dataset.classes, np.arange(len(dataset)))
    for place in np.argsort(hash64(np.arange(len(groups))), kind="stable"):
        yield groups[place]


def _groups(labels: NDArray[np.int64], owners: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The owners of each label that has several; none where fewer than half of all carry such a label."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(owners[order], np.flatnonzero(np.diff(labels[order])) + 1)
    shared = [group for group in map(np.unique, groups) if len(group) > 1]
    return shared if 2 * sum(map(len, shared)) >= len(owners) else []
