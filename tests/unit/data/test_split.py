"""What is held out, by name and by share."""

from __future__ import annotations

import pytest

from fastt2i.data.split import heldout_by_share, heldout_by_word, split_word


def test_a_share_depends_on_the_keys_alone() -> None:
    keys = [f"sample {number}" for number in range(1000)]
    heldout = heldout_by_share(keys, 0.2)
    assert 150 < heldout.sum() < 250
    assert heldout[500:].tolist() == heldout_by_share(keys[500:], 0.2).tolist()


def test_a_share_never_takes_everything() -> None:
    assert not heldout_by_share(["a"], 0.99999).any()
    assert len(heldout_by_share([], 0.5)) == 0


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("test/0000.parquet", "test"),
        ("imagenet_Val.000.tar", "Val"),
        ("validation-0.tar", "validation"),
        ("latest.tar", ""),
        ("training.tar", ""),
        ("contest-0.tar", ""),
    ],
)
def test_words_in_names(name: str, word: str) -> None:
    assert split_word(name) == word


def test_words_split_only_where_both_sides_are_there() -> None:
    held = heldout_by_word(["train", "", "TEST", "validation"])
    assert held is not None and held.tolist() == [False, False, True, True]
    assert heldout_by_word(["train", ""]) is None
    assert heldout_by_word(["test", "val"]) is None
