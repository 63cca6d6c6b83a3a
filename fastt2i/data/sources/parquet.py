"""Hugging Face parquet: a table in one or many files, with a column of images and one of captions.

- The images are in a column of structs with `bytes`, or of bytes; `image`, `img`, `jpg`, `jpeg`, `png` or `webp` if
  there are several such columns.
- The captions are in `text`, `caption`, `captions` or `prompt`, or the column that the setting names: a string or a
  list of strings.
- Files are named as `helpers.shards` says. `train-*` and `test-*` or `validation-*` (or folders of those
  names) are the split.
Footers are looked at (`parquet_footers`) and captions read at the start, images when their turn comes. Parquet keeps
the images of a row group together, so a group is read whole and the last few stay in memory: quick for files with small
row groups and for sets of which the loader keeps the decoded images. For random access to large sets, WebDataset shards
are better.
"""

from __future__ import annotations

import posixpath
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.captions import clean, field_captions, text_columns
from fastt2i.data.dataset import NO_CAPTION, Dataset, Problem, Split
from fastt2i.data.sources.helpers.folder_files import MAX_IMAGE_FILE, listed
from fastt2i.data.sources.helpers.parquet_footers import footer_damages
from fastt2i.data.sources.helpers.shards import find_shards, names_shards
from fastt2i.data.split import heldout_by_share, heldout_by_word, split_word
from fastt2i.errors import UserError
from fastt2i.files.io_errors import classify_io_errors
from fastt2i.files.reading import file_stamp

LAYOUT = "*.parquet with a column of images and one of captions"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_EXTENSIONS = (".parquet",)
_LARGE_GROUP = 2**24  # bytes
MAX_GROUP = 2**31  # bytes of a column of a row group
_BATCH = 8  # rows unpacked at a time
_CACHED_BYTES = 2**28  # of row groups that stay in memory, in each process


def detect(path: str) -> bool:
    """Whether `path` names parquet files, or a folder that has some."""
    return names_shards(path, _EXTENSIONS)


def parquet_dataset(path: str, split: Split = "train", heldout: float = 0.05, text_column: str = "") -> Dataset:
    """Find the captioned images of parquet files, in the order of their names and rows.

    heldout: the share that is held out where the names of the files tell no split. text_column: where the captions are.
    Raises UserError: pyarrow is missing, there is no such file, none can be read, or one lacks the columns.
    """
    shards = find_shards(path, _EXTENSIONS)
    problems = shards.problems
    sizes: list[int] = []
    stamps: list[str] = []
    keys, captions, words, rows, columns = [], [], [], [], []
    split_keys: list[str] = []  # the same whatever other files are read
    damages = footer_damages(shards.paths)
    for number, (file, name, damage) in enumerate(zip(shards.paths, shards.names, damages, strict=True)):
        try:
            if damage:
                raise OSError(damage)
            with classify_io_errors(file):
                stamp, table = file_stamp(file), _open(file)
        except OSError as error:
            problems.append(Problem(name, f"not a parquet file that can be read: {error}"))
            columns.append("")
            stamps.append("")
            continue
        stamps.append(stamp)
        columns.append(_image_column(table.schema_arrow, file))
        sizes += (table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups))
        text = _text_columns(table.schema_arrow, file, text_column)
        for key, own, group, place in _captions(table, text, name, problems):
            keys.append(key)
            split_keys.append(f"{shards.file_names[number]}/{posixpath.basename(key)}")
            captions.append(own)
            words.append(split_word(name))
            rows.append((number, group, place))
    if not keys:
        first = f" ({problems[0].where}: {problems[0].what})" if problems else ""
        raise UserError(f"there is no image with a caption in {path}{first}; wanted is {LAYOUT}")
    _warn_of_large_groups(path, sizes)
    by_word = heldout_by_word(words)
    reader = _RowReader(tuple(shards.paths), tuple(stamps), tuple(columns), np.array(rows, dtype=np.int64))
    return Dataset(
        name=path,
        keys=keys,
        captions=captions,
        read=reader,
        stamp=reader.stamp,
        shards=shards.paths,
        problems=problems,
        heldout=heldout_by_share(split_keys, heldout) if by_word is None else by_word,
    ).split(split)


def _warn_of_large_groups(path: str, sizes: list[int]) -> None:
    """sizes: bytes of each row group."""
    mean = sum(sizes) / len(sizes)
    if sum(sizes) > _CACHED_BYTES and mean > _LARGE_GROUP:
        warnings.warn(
            f"the row groups of {path} have {mean / 2**20:.0f} MiB on average, and each image that is read at random "
            "reads a whole one: unless all decoded images fit in data.memory_mb, write the set out with "
            "`python -m fastt2i.data pack` first",
            stacklevel=2,
        )


def _captions(
    table: Any, columns: list[str], name: str, problems: list[Problem]
) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
    """Key, captions, row group and place in it of each row that has captions; the others become problems."""
    row = 0
    for group in range(table.num_row_groups):
        try:
            with classify_io_errors(name):
                parts = [
                    [value for batch in _batches(table, group, column) for value in batch.to_pylist()]
                    for column in columns
                ]
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*parts, strict=True)]
        except (OSError, ValueError) as error:
            problems.append(Problem(name, f"the captions of row group {group} cannot be read: {_line(error)}"))
            row += table.metadata.row_group(group).num_rows
            continue
        for place, texts in enumerate(rows):
            key = f"{name}/{row + place:08d}"
            own = field_captions(texts, columns)
            if cleaned := tuple(dict.fromkeys(clean(own or ()))):
                yield key, cleaned, group, place
            elif own is None and any(value is not None for value in texts.values()):
                column, value = next((column, value) for column, value in texts.items() if value is not None)
                what = f"`{column}` is {type(value).__name__}, neither a string nor a list of strings"
                problems.append(Problem(key, what))
            else:
                problems.append(Problem(key, NO_CAPTION))
        row += len(rows)


def _text_columns(schema: Any, file: str, text_column: str) -> list[str]:
    wanted = text_columns(text_column)
    found = [column for column in wanted if column in schema.names]
    if not found:
        raise UserError(
            f"{file} has no column {' or '.join(wanted)}: name the one with captions by --data.text-column; "
            f"there are {listed(schema.names)}"
        )
    return found


def _open(file: str) -> Any:
    """A parquet file. Raises OSError where it is none."""
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)  # not mapped: a file that shrinks meanwhile would end the process
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        number = getattr(error, "errno", None)
        raise (OSError(_line(error)) if number is None else OSError(number, _line(error))) from error


def _image_column(schema: Any, file: str) -> str:
    """The column that holds the images: its name, or `name.bytes` where it holds structs."""
    from pyarrow import types

    found = {}
    for column in schema:
        place = column.type.get_field_index("bytes") if types.is_struct(column.type) else -1
        if place >= 0 and _holds_bytes(column.type.field(place).type):
            found[column.name] = f"{column.name}.bytes"
        elif _holds_bytes(column.type):
            found[column.name] = column.name
    usual = [found[column] for column in IMAGE_COLUMNS if column in found]
    if not usual and len(found) != 1:
        what = f"it has several of bytes, {listed(found)}" if found else f"there are {listed(schema.names)}"
        raise UserError(f"{file} has no column `image` with bytes, or with structs of bytes and path; {what}")
    return usual[0] if usual else next(iter(found.values()))


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


@dataclass(frozen=True)
class _RowReader:
    """Reads the image of a row."""

    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    """Of the files when their rows were counted."""
    columns: tuple[str, ...]
    """The column of the images in each file."""
    rows: NDArray[np.int64]
    """int64 (N, 3): file, row group and place in it of each sample."""

    def __call__(self, sample: int) -> bytes:
        file, group, place = self.rows[sample].tolist()
        path = self.paths[file]
        with classify_io_errors(path):
            images = _row_groups.get(path, self.stamps[file], self.columns[file], group)
        content = images[place].as_py() if place < len(images) else None  # the columns of a damaged file may differ
        if not content:
            raise OSError("the row has no bytes of an image")
        if len(content) > MAX_IMAGE_FILE:
            raise OSError(f"the image is larger than {MAX_IMAGE_FILE >> 20} MiB")
        return bytes(content)

    def stamp(self, sample: int) -> str:
        file, group, place = self.rows[sample].tolist()
        return f"{file_stamp(self.paths[file])} {group} {place}"


class _RowGroups:
    """The columns of images that this process has read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: OrderedDict[tuple[str, str, str, int], Any] = OrderedDict()

    def get(self, path: str, stamp: str, column: str, group: int) -> Any:
        """The images of a row group, an arrow array. Raises OSError."""
        key = path, stamp, column, group
        with self._lock:
            if key not in self._read:
                if file_stamp(path) != stamp:
                    raise OSError("the file has changed since its rows were counted")
                self._read[key] = _read_group(path, column, group)
                while len(self._read) > 1 and sum(array.nbytes for array in self._read.values()) > _CACHED_BYTES:
                    self._read.popitem(last=False)
            self._read.move_to_end(key)
            return self._read[key]


_row_groups = _RowGroups()


def _read_group(path: str, column: str, group: int) -> Any:
    import pyarrow
    from pyarrow import compute, types

    try:
        array = pyarrow.concat_arrays(_batches(_open(path), group, column))
        return compute.struct_field(array, "bytes") if types.is_struct(array.type) else array
    except ValueError as error:
        raise OSError(_line(error)) from error


def _batches(table: Any, group: int, column: str) -> Iterator[Any]:
    """A column of a row group, piece by piece: some kilobytes of a file can say the same image a million times.

    Raises OSError: it is more than 2 GiB; ValueError: it is damaged.
    """
    size, metadata = 0, table.metadata.row_group(group)
    parts = (metadata.column(place) for place in range(metadata.num_columns))
    told = sum(part.total_uncompressed_size for part in parts if f"{part.path_in_schema}.".startswith(f"{column}."))
    if told <= MAX_GROUP:
        for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[column], use_threads=False):
            size += batch.nbytes
            if size > MAX_GROUP:
                break
            yield batch.column(0)
    if max(size, told) > MAX_GROUP:
        raise OSError(f"the row group unpacks to more than {MAX_GROUP >> 30} GiB")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
