"""What feeds DALI: the encoded image of a position in the run, with how it is to be cut and turned.

Reader processes import this module, and therefore it imports no torch.
"""

from __future__ import annotations

import json
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.decode import MAX_PIXELS, BadImage, Decoder, Square, central_square, decode
from fastt2i.data.loaders.image_headers import parse_header
from fastt2i.data.loaders.quarantine import replacement
from fastt2i.data.loaders.worker_signals import setup_worker_signals
from fastt2i.data.sampler import Plan, Sampler
from fastt2i.errors import UserError
from fastt2i.files.io_errors import SystemIOError, classify_io_errors

# A transposition, and mirroring before it, left to right and top to bottom, by EXIF orientation.
_TURNS = {
    1: (0, 0, 0),
    2: (0, 1, 0),
    3: (0, 1, 1),
    4: (0, 0, 1),
    5: (1, 0, 0),
    6: (1, 0, 1),
    7: (1, 1, 1),
    8: (1, 1, 0),
}

# DALI's INTERP_CUBIC; and its INTERP_NN, for squares of the right size: a cubic filter leaves them as they are, slowly.
_CUBIC, _NEAREST = 2, 0

#: Content, `Meta` and `Report.pack` of a sample.
Fed = tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]


class Meta(NamedTuple):
    """How to cut and turn an image; int32, one after the other."""

    top: int
    left: int
    height: int
    width: int
    mirror: int
    """Left to right, after the cut; then `turn_over`."""
    turn_over: int
    """Top to bottom."""
    transpose: int
    """Swap rows and columns at last."""
    interpolation: int
    """DALI's number of the filter."""
    step: int
    sample: int
    """Place in the dataset; -1 where nothing can be decoded."""


class Report(NamedTuple):
    """What went wrong on the way to a sample."""

    failures: list[tuple[int, str]] = []
    """Samples that cannot be decoded, with reasons."""
    error: str = ""
    """Why there is no sample at all."""
    of_the_machine: bool = False
    """Whether that is the machine's fault."""

    def pack(self) -> NDArray[np.uint8]:
        return np.frombuffer(json.dumps(self).encode(), dtype=np.uint8)

    @classmethod
    def unpack(cls, content: NDArray[np.uint8]) -> Report:
        failures, error, of_the_machine = json.loads(content.tobytes())
        return cls([(sample, reason) for sample, reason in failures], error, of_the_machine)


class SampleInfo(Protocol):
    """As `nvidia.dali.types.SampleInfo`."""

    iteration: int
    idx_in_batch: int


class DaliSource:
    """The sample of each position from some step on, whatever process asks in whatever order.

    An image in a plain form goes to DALI as it is; any other one is decoded with Pillow here, to the very pixels of the
    result, and handed on uncompressed. One that Pillow refuses is replaced as in every loader, and reported.
    """

    def __init__(
        self,
        decode: Decoder,
        count: int,
        sampler: Sampler,
        first_step: int,
        *,
        bad: frozenset[int] = frozenset(),
        refused: frozenset[int] = frozenset(),
    ) -> None:
        """count: samples in the dataset. bad: samples that nothing can decode. refused: those that only DALI cannot."""
        self._decode = decode
        self._count = count
        self._sampler = sampler
        self._first_step = first_step
        self._refused = refused
        self._bad = set(bad)  # known to this process: not tried again
        self._planned: tuple[int, Plan, NDArray[np.int64]] | None = None

    def __setstate__(self, state: dict[str, object]) -> None:
        """In a reader process."""
        self.__dict__.update(state)
        setup_worker_signals()

    def __call__(self, info: SampleInfo) -> Fed:
        return self.sample(self._first_step + info.iteration, info.idx_in_batch)

    def sample(self, step: int, place: int) -> Fed:
        """The sample at a place of this rank's part of a step."""
        if self._planned is None or self._planned[0] != step:
            self._planned = step, self._sampler.plan(step), self._sampler.positions(step)
        _, plan, positions = self._planned
        ready: dict[int, tuple[NDArray[np.uint8], Square, int]] = {}
        failures: list[tuple[int, str]] = []

        def usable(sample: int) -> bool:
            if sample not in ready and sample not in self._bad:
                try:
                    ready[sample] = self._load(sample)
                except (BadImage, OSError) as error:
                    self._bad.add(sample)
                    failures.append((sample, str(error)))
            return sample in ready

        sample, error, fault = int(plan.samples[place]), "", False
        try:
            if not usable(sample):
                sample = replacement(int(positions[place]), self._count, usable)
            content, square, orientation = ready[sample]
        except UserError as nothing:
            sample, error, fault = -1, str(nothing), isinstance(nothing, SystemIOError)
            content, square, orientation = _uncompressed(np.zeros((1, 1, 3), dtype=np.uint8)), Square(0, 0, 1), 1
        transpose, mirror, turn_over = _TURNS[orientation]
        if plan.flips[place]:  # left to right when all else is done
            mirror, turn_over = (mirror, 1 - turn_over) if transpose else (1 - mirror, turn_over)
        top, left, side = square.top, square.left, square.side
        interpolation = _NEAREST if side == self._decode.image_size else _CUBIC
        meta = Meta(top, left, side, side, mirror, turn_over, transpose, interpolation, step, sample)
        return content, np.array(meta, dtype=np.int32), Report(failures, error, fault).pack()

    def _load(self, sample: int) -> tuple[NDArray[np.uint8], Square, int]:
        """Content, the square to take of it, and its orientation. Raises BadImage, SystemIOError, OSError."""
        with classify_io_errors(f"image {sample}"):
            return self._prepared(sample, self._decode.read(sample))

    def _prepared(self, sample: int, content: bytes) -> tuple[NDArray[np.uint8], Square, int]:
        crop = self._decode.crop(sample)
        header = None if sample in self._refused else parse_header(content)
        if header is None or header.width * header.height > MAX_PIXELS:
            pixels = decode(content, self._decode.image_size, crop=crop)
            return _uncompressed(pixels), Square(0, 0, self._decode.image_size), 1
        square = central_square(header.width, header.height, crop, header.orientation)
        return np.frombuffer(content, dtype=np.uint8), square, header.orientation


class OneByOne:
    """The samples of a single step, each as a batch of its own."""

    def __init__(self, source: DaliSource, step: int, size: int) -> None:
        self._source = source
        self._step = step
        self._size = size

    def __call__(self, info: SampleInfo) -> Fed:
        return self._source.sample(self._step, info.iteration % self._size)  # DALI asks for more than is taken


def _uncompressed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A portable pixmap of (H, W, 3)."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0])
    return np.frombuffer(header + pixels.tobytes(), dtype=np.uint8)
