"""What to draw, and in which parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastt2i.errors import UserError
from fastt2i.models.noise import SeededNoise
from fastt2i.ops.checks import is_whole


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw, and how.

    Attributes:
        prompt: what the images show.
        num: how many images.
        seed: of the noise; the same seed gives the same images.
        truncation: factor of the noise: below 1 images are more typical and less varied, at 0 all are one (BigGAN,
            Brock et al. 2019, truncates instead of scaling).
        best_of: how many are drawn, of which the `num` that the discriminator scores highest are kept, best first;
            None draws `num`, in the order of their noise.
        negative_prompt: how well an image matches this is taken off its score.

    Raises:
        UserError: a value is none that can be drawn.
    """

    prompt: str
    num: int = 1
    seed: int = 0
    truncation: float = 1.0
    best_of: int | None = None
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if not isinstance(value, str):
                raise UserError(f"{name} is {value!r}; it must be a text")
        for name, number in (("num", self.num), ("seed", self.seed), ("best_of", self.best_of)):
            if number is not None and (isinstance(number, bool) or not is_whole(number)):
                raise UserError(f"{name} is {number!r}; it must be a whole number")
        if not self.prompt.strip():
            raise UserError(f"the prompt {self.prompt!r} is empty; say in a few words what to draw")
        if self.num < 1:
            raise UserError(f"num is {self.num}; it must be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be between 0 and 2^63 - 1")
        if not 0 <= self.truncation <= 2:
            raise UserError(f"truncation is {self.truncation}; it must be between 0 and 2")
        if self.best_of is not None and self.best_of < self.num:
            raise UserError(f"best_of is {self.best_of}; it must be num, which is {self.num}, or more")
        if self.negative_prompt.strip() and self.candidates == self.num:
            raise UserError("negative_prompt is for choosing among images; give a best_of that is more than num")

    @property
    def candidates(self) -> int:
        """Images that are drawn."""
        return self.num if self.best_of is None else self.best_of

    def parts(self, noise_dim: int, most: int | None = None) -> Iterator[Part]:
        """The candidates in their order, `most` at a time: all at once without that, or where there is a choice."""
        noise = SeededNoise(self.seed, noise_dim, self.truncation)
        size = self.candidates if most is None or self.best_of is not None else most
        for first in range(0, self.candidates, size):
            yield Part(self, range(first, min(first + size, self.candidates)), noise)


class Part(NamedTuple):
    """Candidates of a request that are drawn together: their places among all, and the noise, which gives theirs."""

    request: Request
    numbers: range
    noise: SeededNoise

    @property
    def num(self) -> int:
        """Images that are kept."""
        return min(self.request.num, len(self.numbers))
