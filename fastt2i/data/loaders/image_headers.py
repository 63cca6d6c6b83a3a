"""Headers of image files, without decoding: which files a decoder other than Pillow gives the same pixels of."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

from PIL import Image

from fastt2i.data.decode import orientation_of


class Header(NamedTuple):
    """Pixels as they are stored, and how they are to be turned."""

    width: int
    height: int
    orientation: int
    """EXIF's, 1 to 8."""


def parse_header(content: bytes) -> Header | None:
    """The header of an image that every decoder turns into the same pixels; None says nothing of the others.

    It is in the plain form of JPEG (8 bits, Huffman, gray or YCbCr), PNG (up to 8 bits, no transparency), WebP or BMP
    (24 bits), and its last part is there. That the rest is whole only decoding can tell.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _webp(content)
        if content.startswith(b"BM"):
            return _bmp(content)
    except (struct.error, IndexError):  # it ends within the header
        pass
    return None


def _jpeg(content: bytes) -> Header | None:
    """ITU-T T.81, annex B; the markers of Adobe and EXIF are in APP14 and APP1."""
    place, frame, with_metadata = 2, None, False
    while True:
        sync, marker, length = struct.unpack_from(">BBH", content, place)
        if sync != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            return None
        body = place + 4
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended and progressive, with Huffman codes
            frame = struct.unpack_from(">BHHB", content, body)
            components = content[body + 6 : body + 6 + 3 * frame[3] : 3]
            if frame[0] != 8 or not frame[1] or not frame[2] or frame[3] not in (1, 3) or components == b"RGB":
                return None
        elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        elif marker == 0xE1 and content.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), body):
            with_metadata = True
        elif marker == 0xEE and content.startswith(b"Adobe", body) and content[body + 11] != 1:
            return None  # RGB or CMYK
        elif marker == 0xDA:
            break
        place = body + length - 2
    if frame is None or content.rfind(b"\xff\xd9", place) < 0:
        return None
    orientation = 1
    if with_metadata:
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                orientation = orientation_of(image)
        except Exception:  # in whatever way, if it is damaged
            return None
    return Header(frame[2], frame[1], orientation)


def _png(content: bytes) -> Header | None:
    length, kind, width, height, depth, color, _, _, interlaced = struct.unpack_from(">I4sIIBBBBB", content, 8)
    if kind != b"IHDR" or length != 13 or depth > 8 or color not in (0, 2, 3) or interlaced or not width or not height:
        return None
    place = 8
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind in (b"tRNS", b"acTL", b"eXIf"):
            return None
        if kind in (b"tEXt", b"zTXt", b"iTXt") and content.startswith((b"Raw profile", b"XML:com.adobe"), place + 8):
            return None  # may hold an orientation
        place += 12 + length
    return Header(width, height, 1) if place <= len(content) else None


def _webp(content: bytes) -> Header | None:
    """The simple layouts of https://developers.google.com/speed/webp/docs/riff_container, lossy and lossless."""
    kind, length = struct.unpack_from("<4sI", content, 12)
    if 20 + length > len(content):
        return None
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = (number & 0x3FFF for number in struct.unpack_from("<HH", content, 26))
        return Header(width, height, 1) if width and height else None
    if kind == b"VP8L" and content[20] == 0x2F:
        bits = struct.unpack_from("<I", content, 21)[0]
        has_alpha = bits >> 28 & 1
        return None if has_alpha else Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1)
    return None


def _bmp(content: bytes) -> Header | None:
    start, size, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", content, 10)
    if size < 40 or width < 1 or height < 1 or bits != 24 or compression:
        return None
    row = (3 * width + 3) // 4 * 4
    return Header(width, height, 1) if start + row * height <= len(content) else None
