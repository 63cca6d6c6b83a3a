"""What a path may say of shards: a file, a folder of them, patterns, and lists of all these."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastt2i.data.dataset import Problem
from fastt2i.data.sources.helpers.folder_files import open_folder, walk
from fastt2i.errors import UserError
from fastt2i.files.reading import printable

MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Where the shards of a folder are looked for before it is walked, besides the folder itself.
_USUAL_FOLDER = re.compile(r"(data|default|train|test|val|valid|validation)([-_.].*)?", re.IGNORECASE)


@dataclass
class Shards:
    """Shards in the order in which they were named, each once, and names for them."""

    paths: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Unique and printable: relative to the folder that all are in."""
    file_names: list[str] = field(default_factory=list)
    """Printable names without folders: the same whatever other shards are read."""
    problems: list[Problem] = field(default_factory=list)


def names_shards(path: str, extensions: tuple[str, ...]) -> bool:
    """Whether a path names shards that end so, or folders that have some in them or in one usual for shards."""
    if os.path.isdir(path):
        return any(
            name.lower().endswith(extensions) and not _is_metadata(folder, name)
            for folder in (path, *_usual_folders(path))
            for name in _names_in(folder)
        )
    first, *others = path.split("::")
    if others and not os.path.lexists(path):
        return all(names_shards(part, extensions) for part in (first, *others))
    return path.lower().endswith(extensions)


def _usual_folders(path: str) -> Iterator[str]:
    return (os.path.join(path, name) for name in _names_in(path) if _USUAL_FOLDER.fullmatch(name))


def _names_in(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []


def find_shards(path: str, extensions: tuple[str, ...]) -> Shards:
    """The shards that a path names.

    Parts of the path are joined by `::`. Each is a file; a folder, which stands for the shards below it, links that
    leave it left out; or a pattern with braces (`{00000..00012}`, `{a,b}`) and the shell's `*`, `?` and `[]`. A file
    that is named, itself or by a pattern, is read wherever a link leads.
    Raises UserError: there is no such file, or no shard in a folder.
    """
    found = Shards()
    paths: dict[str, None] = {}
    for part in [path] if os.path.lexists(path) else path.split("::"):
        for name in [part] if os.path.lexists(part) else itertools.islice(_braces(part), MAX_SHARDS):
            for shard in _resolve(name, extensions, found.problems):
                if os.path.abspath(shard) in paths:
                    found.problems.append(Problem(printable(shard), "it is named twice, and read once"))
                paths[os.path.abspath(shard)] = None
    found.paths = list(paths)
    home = os.path.commonpath([os.path.dirname(shard) for shard in paths])
    found.names = [printable(os.path.relpath(shard, home).replace(os.sep, "/")) for shard in paths]
    found.file_names = [printable(os.path.basename(shard)) for shard in paths]
    return found


def _resolve(name: str, extensions: tuple[str, ...], problems: list[Problem]) -> Iterator[str]:
    if os.path.isdir(name):
        files = walk(open_folder(name), matters=lambda file: file.lower().endswith(extensions))
        shards = [file for file in files.names if file.lower().endswith(extensions)]
        shards = [file for file in shards if not _is_metadata(*os.path.split(os.path.join(name, file)))]
        problems += files.problems
        if not shards:
            first = f" ({problems[0].where}: {problems[0].what}; files that are named are read)" if problems else ""
            raise UserError(f"there is no {' or '.join(extensions)} in the folder {name}{first}")
        yield from (os.path.join(name, file) for file in shards)
    elif os.path.isfile(name):
        yield name
    elif matches := sorted(glob.glob(_with_literal_folders(name))):
        yield from matches
    else:
        raise UserError(f"there is no file {name}; shards are local files, joined by `::` or named by a pattern")


def _with_literal_folders(pattern: str) -> str:
    """A pattern whose leading folders, as far as they are there by these very names, stand for themselves alone."""
    parts = pattern.split(os.sep)
    known = next(n for n in range(len(parts) - 1, -1, -1) if n == 0 or os.path.isdir(os.sep.join(parts[:n]) or os.sep))
    return os.sep.join([*map(glob.escape, parts[:known]), *parts[known:]])


def _is_metadata(folder: str, name: str) -> bool:
    """img2dataset leaves `00000.parquet` beside `00000.tar`, or beside the folder `00000`: a table without images."""
    stem = os.path.join(folder, os.path.splitext(name)[0])
    return name.lower().endswith(".parquet") and (os.path.isfile(f"{stem}.tar") or Path(stem).is_dir())


def _braces(pattern: str) -> Iterator[str]:
    """What a pattern with braces stands for, as in a shell; braces that hold neither a range nor a list stay."""
    for match in _BRACES.finditer(pattern):
        before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
        if numbers := _RANGE.fullmatch(inside):
            first, last = int(numbers[1]), int(numbers[2])
            width = max(map(len, numbers.groups())) if any(n[0] == "0" and len(n) > 1 for n in numbers.groups()) else 0
            step = 1 if first <= last else -1
            choices: Iterator[str] = (f"{number:0{width}d}" for number in range(first, last + step, step))
        elif "," in inside:
            choices = iter(inside.split(","))
        else:
            continue
        for choice in choices:
            yield from _braces(before + choice + after)
        return
    yield pattern
