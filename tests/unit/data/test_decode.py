"""Decoding what files hold: every mode that images come in, and everything that is no image."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fastt2i.data.decode import BadImage, decode


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def smooth(width: int, height: int) -> NDArray[np.uint8]:
    """A picture that survives JPEG: two gradients and a constant."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(255, 0, height)[:, None]
    pixels[..., 2] = 90
    return pixels


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_pixels_of_the_right_size_come_back_untouched(format: str, options: dict[str, object]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    result = decode(encode(Image.fromarray(pixels), format, **options), 32)
    np.testing.assert_array_equal(result, pixels)
    assert result.dtype == np.uint8 and result.flags["C_CONTIGUOUS"] and result.flags["WRITEABLE"]


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options: dict[str, object]) -> None:
    pixels = smooth(64, 64)
    result = decode(encode(Image.fromarray(pixels), "JPEG", quality=95, **options), 64)
    assert np.abs(result.astype(int) - pixels).max() < 16


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (61, 60), (33, 100), (1, 1), (3, 400)])
def test_the_central_square_is_cut_out(width: int, height: int) -> None:
    side = min(width, height)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = (255, 128, 0)
    result = decode(encode(Image.fromarray(pixels)), 32)
    assert result.shape == (32, 32, 3)
    np.testing.assert_array_equal(result, np.broadcast_to((255, 128, 0), result.shape))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode(encode(Image.fromarray(stripes)), 32)[2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 40), (61, 40)])
def test_exif_orientation(orientation: int, size: tuple[int, int]) -> None:
    from PIL import ImageOps

    image = Image.fromarray(smooth(*size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = decode(encode(upright), 32)
    np.testing.assert_array_equal(decode(content, 32), expected)


def test_damaged_exif_is_ignored() -> None:
    content = encode(Image.fromarray(smooth(32, 32)), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    np.testing.assert_array_equal(decode(content, 32), smooth(32, 32))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:4] = (200, 0, 0, 255)
    rgba[4:] = (0, 0, 0, 0)
    palette = Image.fromarray(rgba).convert("RGB").quantize(4)
    clear = palette.getpixel((0, 7))
    gray = Image.fromarray(np.repeat(np.repeat([[0], [99]], 4, 0), 8, 1).astype(np.uint8))
    for content, top in (
        (encode(Image.fromarray(rgba)), (200, 0, 0)),
        (encode(Image.fromarray(rgba), "WEBP", lossless=True), (200, 0, 0)),
        (encode(Image.fromarray(rgba).convert("LA")), (60, 60, 60)),
        (encode(palette, transparency=clear), (200, 0, 0)),
        (encode(gray, transparency=99), (0, 0, 0)),
    ):
        result = decode(content, 8)
        np.testing.assert_array_equal(result[:4], np.broadcast_to(top, (4, 8, 3)))
        np.testing.assert_array_equal(result[4:], 255)
    half = np.full((8, 8, 4), (0, 0, 0, 128), dtype=np.uint8)
    assert abs(int(decode(encode(Image.fromarray(half)), 8)[3, 3, 0]) - 127) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    gray = np.full((16, 16, 3), 255, dtype=np.uint8)
    gray[:, :8] = 0
    content = encode(
        Image.fromarray(gray).convert(mode),
        "JPEG" if mode in ("CMYK", "YCbCr") else "PNG",
        **({"quality": 95} if mode in ("CMYK", "YCbCr") else {}),
    )
    assert np.abs(decode(content, 16).astype(int) - gray).max() < 12


def test_sixteen_bits_become_eight() -> None:
    gray = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    result = decode(encode(Image.fromarray(gray)), 16)
    np.testing.assert_array_equal(result, np.repeat(np.arange(256).reshape(16, 16, 1), 3, 2))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(content, 16)[0, 0], (255, 0, 0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404 Not Found</body></html>", "not a JPEG, PNG, WebP or BMP image"),
        (b"\xff\xd8\xff\xe0", "not a JPEG"),
        (bytes(1000), "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        (png_header(60_000, 60_000), "absurdly large"),
        (png_header(12_000, 12_000), "absurdly large: 12000 x 12000 pixels, more than 134217728"),
        (png_header(100, 100), "damaged: image file is truncated"),
        (png_header(0, 5), "not a JPEG"),
    ],
)
def test_what_is_no_image(content: bytes, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pytest shows what the module keeps quiet
        with pytest.raises(BadImage, match=reason):
            decode(content, 32)


def test_formats_that_are_not_read() -> None:
    for format in ("GIF", "TIFF", "PPM"):
        with pytest.raises(BadImage, match="not a JPEG, PNG, WebP or BMP image"):
            decode(encode(Image.fromarray(smooth(16, 16)), format), 16)


def test_the_limit_of_pixels_can_be_set() -> None:
    content = encode(Image.fromarray(smooth(20, 10)))
    decode(content, 8, max_pixels=200)
    with pytest.raises(BadImage, match="20 x 10 pixels, more than 199"):
        decode(content, 8, max_pixels=199)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_files_cut_short(format: str, options: dict[str, object], part: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), format, **options)
    with pytest.raises(BadImage):
        decode(content[: int(len(content) * part)], 32)


def test_a_box_is_cut_out_of_the_stored_image_before_it_is_turned() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    box = np.array([50, -7, 70, 10])  # 10 x 10 of it lie within
    content = encode(image)
    np.testing.assert_array_equal(decode(content, 10, crop=box), pixels[:10, 50:])
    turned = decode(encode(image, exif=exif), 10, crop=box)
    np.testing.assert_array_equal(turned, np.rot90(pixels[:10, 50:], -1))
    with pytest.raises(BadImage, match="its box 60, 0, 70, 10 lies outside of its 60 x 40 pixels"):
        decode(content, 10, crop=np.array([60, 0, 70, 10]))


@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
def test_flipped_bytes_decode_or_are_refused(data: st.DataObject, format: str) -> None:
    content = bytearray(encode(Image.fromarray(smooth(24, 20)), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(bytes(content), 16, max_pixels=2**20).shape == (16, 16, 3)
    except BadImage as error:
        assert str(error)
