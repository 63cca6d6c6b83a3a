"""Contents of picture files."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from fastt2i.errors import UserError
from fastt2i.pictures.pixels import encoded


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")])
def test_pictures_are_of_their_suffix_or_too_large_for_it(suffix: str, kind: str) -> None:
    assert Image.open(io.BytesIO(encoded(Image.new("RGB", (5, 3)), suffix))).format == kind
    with pytest.raises(UserError, match=rf"a picture of 1 x 70000 pixels is no {suffix} .*; name a \.png, or a folder"):
        encoded(Image.new("RGB", (1, 70_000)), suffix)


@pytest.mark.parametrize(("suffix", "told"), [(".pdf", ".pdf"), ("", "a file without a suffix")])
def test_other_suffixes_are_refused(suffix: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"written as .png, .jpg, .jpeg, .webp and not as {told}$"):
        encoded(Image.new("RGB", (5, 3)), suffix)
