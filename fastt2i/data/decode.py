"""Turns an image file's content into pixels, or says in a few words why it cannot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastt2i.data.dataset import Dataset
from fastt2i.files.io_errors import classify_io_errors

MAX_PIXELS = 128 * 2**20  # more is refused before anything is decoded; cameras make 100 megapixels

# What is decoded, whatever the file is called. Pillow knows more formats, some of which start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Pillow warns where `decode` has an answer of its own: such images are refused, and such metadata is ignored.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """The content is no image that can be decoded; the message is the reason."""


def decode(
    content: bytes, image_size: int, *, crop: NDArray[np.int64] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image, cut out its central square and resize that -> uint8 (image_size, image_size, 3), RGB.

    JPEG, PNG, WebP or BMP, by its content; the first frame of an animation. The EXIF orientation is applied,
    transparency is laid on white, 16 bits become 8, colour profiles are ignored; the resize is bicubic and antialiased.
    crop: int64 (4,): left, top, right and bottom of the part to take in place of the whole, in pixels as they are
    stored; what of it lies beyond the image is cut off.
    Raises BadImage: empty, another format, damaged or cut short, more than `max_pixels` by its header (which is
    checked before anything is decoded), nothing of it in the crop. Raises MemoryError.
    """
    with opened(content, max_pixels) as image:
        pixels, orientation = _to_rgb(image), orientation_of(image)
        left, top, side = central_square(*pixels.size, crop, orientation)
        # Not by `resize(box=...)`: that lets pixels from outside the box into its edges.
        square = _upright(pixels.crop((left, top, left + side, top + side)), orientation)
        return np.array(square.resize((image_size, image_size), Image.Resampling.BICUBIC))


def decode_whole(content: bytes, *, crop: NDArray[np.int64] | None = None) -> Image.Image:
    """Decode an image as `decode` does, but for the square: RGB, all of it or of `crop`. Raises BadImage."""
    with opened(content) as image:
        pixels = _to_rgb(image)
        box = (0, 0, *image.size) if crop is None else _inside(*image.size, crop)
        return _upright(pixels.crop(box), orientation_of(image))


@contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image in a file, of which no more than the header has been read; raises BadImage as `decode` does."""
    if not content:
        raise BadImage("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"absurdly large: {image.width} x {image.height} pixels, more than {max_pixels}")
            yield image
    except (BadImage, MemoryError):  # that there is no memory says nothing of the image
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"absurdly large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("not a JPEG, PNG, WebP or BMP image") from error
    except Exception as error:  # a damaged file can make Pillow raise almost anything
        raise BadImage(f"damaged: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class Decoder:
    """Decodes the samples of a dataset by number. Picklable, without the captions, for worker processes."""

    read: Callable[[int], bytes]
    crops: NDArray[np.int64] | None
    image_size: int

    @classmethod
    def of(cls, dataset: Dataset, image_size: int) -> Decoder:
        return cls(dataset.read, dataset.crops, image_size)

    def __call__(self, sample: int) -> NDArray[np.uint8]:
        """As `decode`; raises OSError too where it is the file's fault, and else SystemIOError."""
        with classify_io_errors(f"image {sample}"):
            return decode(self.read(sample), self.image_size, crop=self.crop(sample))

    def crop(self, sample: int) -> NDArray[np.int64] | None:
        """The part of a sample's image to use; None for all of it."""
        return None if self.crops is None else self.crops[sample]


class Square(NamedTuple):
    """A square of an image's pixels as they are stored."""

    left: int
    top: int
    side: int


def central_square(width: int, height: int, crop: NDArray[np.int64] | None, orientation: int) -> Square:
    """The square in the centre of an image, or of the part `crop` of it, that is turned upright afterwards.

    width, height: of the stored image; crop: as for `decode`; orientation: EXIF's, 1 to 8. Where a pixel is left over
    the square is the upright image's upper left one, which may be another one of the stored image.
    Raises BadImage: the crop lies outside.
    """
    box = (0, 0, width, height) if crop is None else _inside(width, height, crop)
    across, down = box[2] - box[0], box[3] - box[1]
    side = min(across, down)
    # Upright, the rest of an odd margin is at the right and at the bottom; where that is left or above, round up.
    x = (across - side + (orientation in (2, 3, 7, 8))) // 2
    y = (down - side + (orientation in (3, 4, 6, 7))) // 2
    return Square(box[0] + x, box[1] + y, side)


def _inside(width: int, height: int, crop: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """What of a crop lies within the image."""
    left, top, right, bottom = crop.tolist()
    box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise BadImage(f"its box {left}, {top}, {right}, {bottom} lies outside of its {width} x {height} pixels")
    return box


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that Pillow finds, 1 to 8; 1, as it is stored, where that is none."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except MemoryError:
        raise
    except Exception:  # damaged metadata, in whatever way, says nothing against the pixels
        return 1
    return orientation if orientation in _ORIENTATIONS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of gray: keep the upper ones, as Pillow does where there is colour
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
