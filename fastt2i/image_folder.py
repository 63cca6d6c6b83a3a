"""Many images, drawn into a folder: memory does not grow with them, and what was stopped goes on."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file, sync_file
from fastt2i.pictures.pixels import png
from fastt2i.pipeline import BATCH_SIZE, TextToImagePipeline
from fastt2i.request import Part, Request

METADATA = "metadata.jsonl"


class ImageFolder:
    """A folder of images with a `metadata.jsonl`, a line for each: file, prompt, seed, number, model and settings.

    Requests, and parts of those of many images, are drawn in groups that fill a batch. A group's lines are written
    after its images; after a stop at any moment a group whose lines are not all there is drawn again, so that images
    are those of a run that nothing stopped.

    Args:
        folder: where to write.
        pipeline: draws.
    """

    def __init__(self, folder: Path, pipeline: TextToImagePipeline) -> None:
        self._folder, self._pipeline = folder, pipeline
        self._metadata = folder / METADATA

    def draw(self, requests: Iterable[Request]) -> tuple[int, int]:
        """Draw what is not there yet; returns how many images there are, and how many of them were there before.

        Raises:
            UserError: the folder holds images of other prompts, settings or of another model.
            OSError: it cannot be written.
        """
        self._prepare()
        there = self._lines()
        total = before = 0
        progress = tqdm(desc="drawing", unit="img", disable=not sys.stderr.isatty())
        noise_dim = self._pipeline.model.generator.noise_dim
        for group in _groups(part for request in requests for part in request.parts(noise_dim, BATCH_SIZE)):
            count = sum(part.num for part in group)
            old = list(itertools.islice(there, count))
            if len(old) == count:
                self._compare(group, old)
                before += count
            else:
                if old:
                    self._cut_after(total)
                    there = iter(())
                self._draw_group(group, total)
            total += count
            progress.update(count)
        progress.close()
        if next(there, None) is not None:
            raise UserError(f"{self._folder} holds more images than these prompts have; choose another --out")
        return total, before

    def _prepare(self) -> None:
        """Make the folder, with the file by which it is known again; a line that was cut off is removed from that."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._metadata.is_file():
            if any(self._folder.iterdir()):
                raise UserError(f"{self._folder} is not empty and has no {METADATA}; choose another --out")
            self._metadata.touch()
        with self._metadata.open("rb+") as file:
            file.truncate(_end_of_last_line(file.fileno(), file.seek(0, os.SEEK_END)))

    def _lines(self) -> Iterator[str]:
        with self._metadata.open(encoding="utf-8") as file:
            yield from file

    def _cut_after(self, count: int) -> None:
        """Keep so many lines: a group that was stopped in the middle is drawn again as a whole."""
        with self._metadata.open("rb") as file:
            size = sum(len(line) for line in itertools.islice(file, count))
        with self._metadata.open("rb+") as file:
            file.truncate(size)

    def _compare(self, group: Sequence[Part], lines: Sequence[str]) -> None:
        """Raise UserError where images are not those that would be drawn."""
        rows = iter(lines)
        for part in group:
            facts = self._facts(part.request)
            for _ in range(part.num):
                try:
                    found = json.loads(next(rows))
                    same = {name: found[name] for name in facts} == facts
                    whole = (self._folder / found["file_name"]).is_file()
                except (ValueError, KeyError, TypeError):
                    same, whole = False, False
                if not same:
                    raise UserError(
                        f"{self._folder} holds images of other prompts, other settings or another model than these; "
                        "choose another --out"
                    )
                if not whole:
                    raise UserError(f"{self._folder / found['file_name']} is gone; remove {METADATA} and draw anew")

    def _facts(self, request: Request) -> dict[str, str | int | float]:
        """What a line says of a request, whatever is drawn."""
        facts: dict[str, str | int | float] = {"prompt": request.prompt, "seed": request.seed, "num": request.num}
        facts |= {"model": self._pipeline.model.digest, "truncation": request.truncation}
        if request.best_of is not None:
            facts |= {"best_of": request.best_of}
        return facts | ({"negative_prompt": request.negative_prompt} if request.negative_prompt else {})

    def _draw_group(self, group: Sequence[Part], first: int) -> None:
        lines: list[str] = []
        for drawing in self._pipeline.draw_parts(group):
            for image, number in zip(self._pipeline.to_pillow(drawing), drawing.numbers, strict=True):
                name = f"{first + len(lines):07d}.png"
                replace_file(self._folder / name, png(image))
                facts = {"file_name": name} | self._facts(drawing.request) | {"number": number}
                if "score" in image.info:
                    facts |= {"score": float(image.info["score"])}
                lines.append(json.dumps(facts, ensure_ascii=False) + "\n")
        with self._metadata.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        sync_file(self._metadata)


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts whose images fill a batch together, one at least."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + len(part.numbers) > BATCH_SIZE:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part.numbers)
    if group:
        yield group


def _end_of_last_line(descriptor: int, size: int, block: int = 1 << 16) -> int:
    """Where the last line feed of a file ends; 0 where there is none."""
    end = size
    while end > 0:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
