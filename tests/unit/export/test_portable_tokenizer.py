"""The tokenizer in an exported file cuts texts as the encoder does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fastt2i.export.portable_tokenizer import portable_tokenizer
from fastt2i.text.encoder import TextEncoder
from fastt2i.text.normalize import separate_words

#: What is parted, joined or dropped, beside words; of emoji one at a time, since several in a row differ by design.
PIECES = ["red", "circle", " ", ", ", "é", "日本", "می\u200cخواهم", "\u00ad", "\ufffd", "\u200b", "\u200c"]
PIECES += ["😀 ", "👍🏽 ", "❤️ ", "👨\u200d👩\u200d👧 "]

pytestmark = pytest.mark.hypothesis


@pytest.fixture(scope="module")
def both(language_model: Path) -> tuple[TextEncoder, Tokenizer]:
    encoder = TextEncoder(str(language_model))
    return encoder, Tokenizer.from_str(portable_tokenizer(encoder))


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@example("a red😀circle")
@example("circle " * 100)
def test_it_cuts_as_in_training(both: tuple[TextEncoder, Tokenizer], text: str) -> None:
    encoder, tokenizer = both
    (known,) = encoder.tokenizer([separate_words(text)])
    assert tokenizer.encode(text).ids == known.ids


def test_a_batch_is_padded_on_the_right(both: tuple[TextEncoder, Tokenizer]) -> None:
    short, long = both[1].encode_batch(["red", "a small red circle"])
    assert len(short.ids) == len(long.ids) and short.ids[-1] == both[0].tokenizer.padding
    assert short.attention_mask == [1, 1, 1, 0, 0, 0] and set(long.attention_mask) == {1}
