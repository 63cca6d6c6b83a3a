"""A quick look at headers: what another decoder than Pillow may have, with its size and orientation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastt2i.data.loaders.image_headers import Header, parse_header

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PLAIN = {
    "jpeg": encode(IMAGE, "JPEG"),
    "jpeg of full colour": encode(IMAGE, "JPEG", subsampling=0),
    "progressive jpeg": encode(IMAGE, "JPEG", progressive=True),
    "gray jpeg": encode(IMAGE.convert("L"), "JPEG"),
    "jpeg with a profile": encode(IMAGE, "JPEG", icc_profile=bytes(70_000)),
    "jpeg with more behind it": encode(IMAGE, "JPEG") + b"more",
    "png": encode(IMAGE, "PNG"),
    "gray png": encode(IMAGE.convert("L"), "PNG"),
    "png of 1 bit": encode(IMAGE.convert("1"), "PNG"),
    "png with a palette": encode(IMAGE.quantize(200), "PNG"),
    "webp": encode(IMAGE, "WEBP"),
    "lossless webp": encode(IMAGE, "WEBP", lossless=True),
    "bmp": encode(IMAGE, "BMP"),
}
RGBA = IMAGE.copy()
RGBA.putalpha(99)
FOR_PILLOW = {
    "cmyk jpeg": encode(IMAGE.convert("CMYK"), "JPEG"),
    "rgb jpeg": encode(IMAGE, "JPEG", keep_rgb=True),
    "jpeg without an end": encode(IMAGE, "JPEG")[:-2],
    "transparent png": encode(RGBA, "PNG"),
    "png with a transparent colour": encode(IMAGE.quantize(9), "PNG", transparency=3),
    "png of 16 bits": encode(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)), "PNG"),
    "turned png": encode(IMAGE, "PNG", exif=turned(6)),
    "animated png": encode(IMAGE, "PNG", save_all=True, append_images=[IMAGE.rotate(90)]),
    "png without an end": encode(IMAGE, "PNG")[:-12],
    "transparent webp": encode(RGBA, "WEBP"),
    "transparent lossless webp": encode(RGBA, "WEBP", lossless=True),
    "webp with metadata": encode(IMAGE, "WEBP", exif=turned(3)),
    "webp cut short": encode(IMAGE, "WEBP")[:-1],
    "bmp with a palette": encode(IMAGE.quantize(16), "BMP"),
    "bmp cut short": encode(IMAGE, "BMP")[:-1],
    "gif": encode(IMAGE, "GIF"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_are_known_by_their_header(name: str) -> None:
    assert parse_header(PLAIN[name]) == Header(45, 31, 1)


@pytest.mark.parametrize("name", FOR_PILLOW)
def test_nothing_is_said_of_the_others(name: str) -> None:
    assert parse_header(FOR_PILLOW[name]) is None


@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_of_a_jpeg(orientation: int) -> None:
    usual = orientation if 1 <= orientation <= 8 else 1
    assert parse_header(encode(IMAGE, "JPEG", exif=turned(orientation))) == Header(45, 31, usual)


def test_an_orientation_in_adobes_metadata() -> None:
    """Pillow reads it where EXIF says nothing."""
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    assert parse_header(encode(IMAGE, "JPEG", xmp=packet)) == Header(45, 31, 8)
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    chunk = struct.pack(">I", len(text)) + b"iTXt" + text + struct.pack(">I", zlib.crc32(b"iTXt" + text))
    png = PLAIN["png"]
    assert parse_header(png[:33] + chunk + png[33:]) is None


@given(data=st.data(), name=st.sampled_from(sorted(PLAIN)))
def test_whatever_a_file_holds_is_no_error(data: st.DataObject, name: str) -> None:
    content = bytearray(PLAIN[name])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(st.integers(0, 255))
    parse_header(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_each_damage_is_left_to_pillow(damages: dict[str, tuple[Callable[[bytes], bytes], str]]) -> None:
    for name, (damage, _) in damages.items():
        header = parse_header(damage(PLAIN["jpeg"]))
        assert header is None or header.width * header.height > 10**9, name
