"""Small data sets in every layout of the field, true to its names and files; and ways in which images are damaged."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


COUNT = 12  # images in a layout: 0 to 8 to be trained on, 9 to 11 held out by its own split


HELDOUT = (9, 10, 11)


def shown(number: int, format: str = "JPEG", frame: int = 0) -> bytes:
    """An image that shows a number from 0 to 12 as its level of grey, with a white frame around it."""
    from PIL import Image

    pixels = np.full((20 + 2 * frame, 24 + 2 * frame, 3), 255, dtype=np.uint8)
    pixels[frame : frame + 20, frame : frame + 24] = 20 * number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, quality=95)
    return file.getvalue()


def huge_png(content: bytes) -> bytes:
    """The image as a PNG whose header says 60,000 x 60,000 pixels."""
    png = bytearray(reencoded(content, "PNG"))
    struct.pack_into(">II", png, 16, 60_000, 60_000)
    struct.pack_into(">I", png, 29, zlib.crc32(png[12:29]))
    return bytes(png)


def reencoded(content: bytes, format: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(content)).save(file, format)
    return file.getvalue()


# What happens to the image files that people have, each with the beginning of the reason that is given for it.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut at 10 %": (lambda content: content[: len(content) // 10], "damaged: |not a JPEG, PNG, WebP or BMP image"),
    "cut at 50 %": (lambda content: content[: len(content) // 2], "damaged: "),
    "cut at 90 %": (lambda content: content[: len(content) * 9 // 10], "damaged: "),
    "empty": (lambda content: b"", "the file is empty"),
    "a web page": (lambda content: b"<!doctype html><title>404</title>", "not a JPEG, PNG, WebP or BMP image"),
    "flipped header": (lambda content: bytes(255 - b for b in content[:4]) + content[4:], "not a JPEG"),
    "a GIF": (lambda content: reencoded(content, "GIF"), "not a JPEG, PNG, WebP or BMP image"),
    "a huge PNG": (huge_png, "absurdly large: "),
}


def said(number: int) -> tuple[str, str]:
    """Two captions of a number."""
    words = " ".join(DIGITS[int(digit)] for digit in str(number))
    return f"a picture of {words}", f"there is {words} on it"


def number_said(caption: str) -> int:
    return int("".join(str(DIGITS.index(word)) for word in caption.split() if word in DIGITS))


def number_shown(pixels: NDArray[np.uint8]) -> int:
    """The number of a decoded image (S, S, 3), which must show nothing else."""
    level = float(np.median(pixels))
    assert np.abs(pixels - level).max() < 8, "there is more than the number in the image"
    return round(level / 20)


def put(folder: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def python2_strings(names: Sequence[str]) -> bytes:
    """What Python 2's `pickle.dumps(list_of_str)` gave."""
    return b"(lp0\n" + b"".join(b"S'%b'\np%d\na" % (name.encode(), i) for i, name in enumerate(names, 1)) + b"."


def python2_numpy_integers(numbers: Sequence[int]) -> bytes:
    """What Python 2's `pickle.dumps(list_of_numpy_int64)` gave, as in `class_info.pickle`."""
    scalar, kind = (
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb",
    )
    values = (repr(number.to_bytes(8, "little")).removeprefix("b").encode() for number in numbers)
    return b"(lp0\n" + b"".join(b"%b(%bS%b\ntRa" % (scalar, kind, value) for value in values) + b"."


def make_cub(folder: Path) -> str:
    """Four classes of three birds; the box of each leaves a frame around the number out."""
    names = [f"{n // 3 + 1:03d}.Class_{n // 3}/Bird_{n:04d}" for n in range(COUNT)]
    for n, name in enumerate(names):
        put(folder, {f"CUB_200_2011/images/{name}.jpg": shown(n, frame=40)})
        put(folder, {f"text/{name}.txt": "\n".join(said(n)) + "\n"})
    # Within the frame of 40: the square that is cut is 2 * int(13 * 0.75) = 18 wide.
    boxes = [f"{n + 1} 45.0 44.0 13.0 11.0" for n in range(COUNT)]
    images = [f"{n + 1} {name}.jpg" for n, name in enumerate(names)]
    put(folder / "CUB_200_2011", {"images.txt": "\n".join(images), "bounding_boxes.txt": "\n".join(boxes)})
    for side, numbers in (("train", range(9)), ("test", HELDOUT)):
        listed = [names[n] for n in reversed(numbers)]
        classes = [n // 3 + 1 for n in reversed(numbers)]
        put(folder / side, {"filenames.pickle": python2_strings(listed)})
        put(folder / side, {"class_info.pickle": python2_numpy_integers(classes)})
    return str(folder)


def make_flowers(folder: Path) -> str:
    for n in range(COUNT):
        name = f"image_{n + 1:05d}"
        put(folder, {f"jpg/{name}.jpg": shown(n), f"text_c10/class_{n // 3 + 1:05d}/{name}.txt": "\n".join(said(n))})
    for side, numbers in (("train", range(9)), ("test", HELDOUT)):
        put(folder / side, {"filenames.pickle": python2_strings([f"jpg/image_{n + 1:05d}" for n in numbers])})
        put(folder / side, {"class_info.pickle": python2_numpy_integers([n // 3 + 1 for n in numbers])})
    return str(folder)


def make_coco(folder: Path) -> str:
    for side, numbers in (("train2014", range(9)), ("val2014", HELDOUT)):
        names = {n: f"COCO_{side}_{n:012d}.jpg" for n in numbers}
        put(folder / side, {name: shown(n) for n, name in names.items()})
        images = [{"id": 1000 - n, "file_name": name, "height": 20, "width": 24} for n, name in names.items()]
        annotations = [{"image_id": 1000 - n, "id": k, "caption": said(n)[k]} for k in range(2) for n in numbers]
        content = json.dumps({"info": {}, "images": images, "licenses": [], "annotations": annotations})
        put(folder / "annotations", {f"captions_{side}.json": content})
    return str(folder)


def make_parquet(folder: Path) -> str:
    """As `datasets` writes them: structs of bytes and path, several row groups, a split by file names."""
    import pyarrow
    from pyarrow import parquet

    parts = {"train-00000-of-00002": range(6), "train-00001-of-00002": range(6, 9), "test-00000-of-00001": HELDOUT}
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n")
    for name, numbers in parts.items():
        images = [{"bytes": shown(n, "PNG"), "path": f"{n}.png"} for n in numbers]
        table = pyarrow.table({"image": images, "text": [list(said(n)) for n in numbers], "label": list(numbers)})
        parquet.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=2)
    return str(folder)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of files, in the order given, names as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shard_members(number: int) -> list[tuple[str, bytes]]:
    """An image, its first caption as text, and both in what img2dataset says of it."""
    key, (first, second) = f"{number:09d}", said(number)
    told = {"caption": [first, second], "key": key, "status": "success", "width": 24}
    return [(f"{key}.jpg", shown(number)), (f"{key}.json", json.dumps(told).encode()), (f"{key}.txt", first.encode())]


def make_webdataset(folder: Path) -> str:
    for name, numbers in {"train-00000": range(5), "train-00001": range(5, 9), "test-00000": HELDOUT}.items():
        write_tar(folder / f"{name}.tar", [member for n in numbers for member in shard_members(n)])
        # The metadata that img2dataset leaves beside each.
        put(folder, {f"{name}.parquet": b"PAR1", f"{name}_stats.json": "{}"})
    return str(folder)


def put_images(folder: Path) -> dict[str, dict[str, int]]:
    """The images of a folder, in `train` and `test`; returns the number of each by its file's name there."""
    sides = {"train": range(9), "test": HELDOUT}
    for side, numbers in sides.items():
        put(folder / side, {f"bird-{n}.jpg": shown(n) for n in numbers})
    return {side: {f"bird-{n}.jpg": n for n in numbers} for side, numbers in sides.items()}


def make_texts(folder: Path) -> str:
    """A .txt beside each image."""
    for side, images in put_images(folder).items():
        put(folder / side, {name.replace(".jpg", ".txt"): "\n".join(said(n)) for name, n in images.items()})
    return str(folder)


def make_imagefolder(folder: Path) -> str:
    """As `datasets` has it: in the folder of each side a metadata.jsonl, whose names are relative to it."""
    for side, images in put_images(folder).items():
        rows = [json.dumps({"file_name": name, "text": said(n)}) for name, n in reversed(images.items())]
        put(folder / side, {"metadata.jsonl": "\n".join(rows)})
    return str(folder)


def make_jsonl(folder: Path) -> str:
    """One metadata.jsonl for all, a line for each caption."""
    named = [(f"{side}/{name}", n) for side, images in put_images(folder).items() for name, n in images.items()]
    rows = [{"caption": said(n)[k], "file_name": name} for k in range(2) for name, n in named]
    put(folder, {"metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    return str(folder)


def make_csv(folder: Path) -> str:
    """One metadata.csv for all, with a column that is not needed, and commas in captions."""
    named = [(f"{side}/{name}", n) for side, images in put_images(folder).items() for name, n in images.items()]
    rows = [f'{n},"look, {said(n)[k]}",{name}' for k in range(2) for name, n in named]
    put(folder, {"metadata.csv": "\r\n".join(["label,text,file_name", *rows])})
    return str(folder)


FORMATS: dict[str, Callable[[Path], str]] = {
    "cub": make_cub,
    "coco": make_coco,
    "flowers": make_flowers,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
}


#: By name: the format, and what makes a sample of it.
LAYOUTS: dict[str, tuple[str, Callable[[Path], str]]] = {
    **{format: (format, make) for format, make in FORMATS.items()},
    "texts": ("folder", make_texts),
    "imagefolder": ("folder", make_imagefolder),
    "jsonl": ("folder", make_jsonl),
    "csv": ("folder", make_csv),
}
