"""Contents with their own digest: any bit that changes is found."""

from __future__ import annotations

import pytest

from fastt2i.files.sealed import sealed, unsealed

CONTENTS = [b"", b"{}", b"two\nlines\n", b"\0\n\xff\n"]


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_sealed_is_read_as_it_was(content: bytes) -> None:
    assert unsealed(sealed(content)) == content


@pytest.mark.parametrize("content", CONTENTS)
def test_every_flipped_bit_and_every_cut_is_found(content: bytes) -> None:
    whole = sealed(content)
    for place in range(8 * len(whole) - 8):  # the line feed at the end says nothing
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="its digest is not the one noted in it"):
            unsealed(bytes(flipped))
    for length in range(len(whole) - 1):
        with pytest.raises(ValueError, match="its digest"):
            unsealed(whole[:length])
