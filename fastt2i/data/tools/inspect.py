"""`python -m fastt2i.data inspect`: what a set is like, in numbers and in a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastt2i.cli import plain
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import BadImage, decode_whole
from fastt2i.data.tools.contact_sheet import Card, contact_sheet
from fastt2i.data.tools.statistics import Line, caption_lines, image_lines, read_image_info, spread
from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file
from fastt2i.files.io_errors import classify_io_errors, writing
from fastt2i.pictures.formats import check_suffix
from fastt2i.pictures.pixels import encoded

if TYPE_CHECKING:
    from fastt2i.text.encoder import TextEncoder

#: Captions whose keywords are counted, evenly spread over the set.
COUNTED = 20_000


def inspect(
    dataset: Dataset,
    sheet: Path,
    *,
    text_model: str,
    max_keywords: int,
    images: int,
    workers: int,
    progress: bool = True,
) -> str:
    """Describe a whole set, and draw `images` samples of it, evenly spread, on a contact sheet.

    text_model, max_keywords: as for training; without the model there is no word of keywords. workers: processes.
    Raises UserError: the sheet cannot be written, or the machine fails to read a file.
    """
    check_suffix(sheet.suffix.lower())  # before all images are looked at
    captions = dataset.split("train").caption_table().captions or dataset.caption_table().captions
    encoder: TextEncoder | None
    try:
        encoder, unread = _encoder(text_model, max_keywords, captions)
        words = [*_keyword_lines(encoder, captions), *([("not read", unread)] if unread else [])]
    except UserError as error:
        encoder, words = None, [("keywords", f"left out: {error}")]
    left_out = [("left out", _left_out(dataset))] if dataset.problems else []
    heldout = 0 if dataset.heldout is None else int(dataset.heldout.sum())
    samples = f"{len(dataset):,} images, {len(dataset) - heldout:,} to train on and {heldout:,} held out"
    classes = [] if dataset.classes is None else [("classes", f"{len(np.unique(dataset.classes)):,}")]
    infos = read_image_info(dataset, workers=workers, progress=progress)
    texts = caption_lines(dataset)
    lines = [("samples", samples), *left_out, *classes, *image_lines(infos), *texts, *words]
    _draw(dataset, sheet, encoder, images)
    return "\n".join([f"data: {dataset.name}", *(f"  {name:20} {plain(value)}" for name, value in lines)])


def _encoder(text_model: str, max_keywords: int, captions: Sequence[str]) -> tuple[TextEncoder, str | None]:
    """The encoder, and what to tell of captions that it does not read."""
    from fastt2i.text.encoder import TextEncoder

    encoder = TextEncoder(text_model, max_keywords=max_keywords)
    return encoder, encoder.fit_idf(captions).sentence(text_model)


def _keyword_lines(encoder: TextEncoder, captions: Sequence[str]) -> list[Line]:
    counted = captions[:: -(-len(captions) // COUNTED)]
    of = f" (of {len(counted):,} captions)" if len(counted) < len(captions) else ""
    keywords = [encoder.keywords(caption) for caption in counted]
    cut = len(encoder.truncated(counted)) / len(counted)
    common = Counter(word.lower() for own in keywords for word in own).most_common(12)
    return [
        ("keywords per caption", spread(np.array([len(own) for own in keywords])) + of),
        ("most common", ", ".join(f"{word} ({count:,})" for word, count in common)),
        ("too long", f"{cut:.1%} of captions are longer than {encoder.name} reads{of}"),
    ]


def _left_out(dataset: Dataset) -> str:
    told = "; ".join(f"{problem.where}: {problem.what}" for problem in dataset.problems[:3])
    more = len(dataset.problems) - 3
    return f"{len(dataset.problems):,}: {told}" + (f"; and {more:,} more, which `verify` lists" if more > 0 else "")


def _draw(dataset: Dataset, sheet: Path, encoder: TextEncoder | None, images: int) -> None:
    places = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(np.int64))
    cards = [_card(dataset, sample, encoder) for sample in places.tolist()]
    captions = len(dataset.caption_table().captions)
    subtitle = f"{len(cards)} of {len(dataset):,} images, evenly spread; {captions:,} different captions"
    if encoder:
        subtitle += "; keywords underlined"
    with writing(sheet):
        sheet.parent.mkdir(parents=True, exist_ok=True)
        replace_file(sheet, encoded(contact_sheet(dataset.name, subtitle, cards), sheet.suffix.lower()))


def _card(dataset: Dataset, sample: int, encoder: TextEncoder | None) -> Card:
    captions = dataset.captions[sample]
    keywords = [encoder.keywords(caption) for caption in captions] if encoder else []
    try:
        with classify_io_errors(dataset.keys[sample]):
            image = decode_whole(dataset.read(sample), crop=None if dataset.crops is None else dataset.crops[sample])
    except (BadImage, OSError) as error:
        return Card(dataset.keys[sample], f"cannot be decoded: {error}", captions, keywords)
    return Card(dataset.keys[sample], image, captions, keywords)
