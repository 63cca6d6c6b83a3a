"""The hash behind every choice: fixed for ever, and uniform enough."""

from __future__ import annotations

import numpy as np

from fastt2i.data.hashing import hash64


def test_the_first_numbers_are_those_of_splitmix64() -> None:
    """Of the generator seeded with 0: published test vector."""
    gamma = 0x9E3779B97F4A7C15
    states = [(k * gamma) % 2**64 for k in range(3)]
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hash64(np.array(states, dtype=np.uint64)).tolist() == expected


def test_arguments_broadcast_and_their_order_matters() -> None:
    assert hash64(1, np.arange(3)).shape == (3,)
    assert int(hash64(1, 2)) != int(hash64(2, 1))
    assert hash64(1, np.arange(3))[2] == hash64(1, 2)
    assert int(hash64(-1)) == int(hash64(np.uint64(2**64 - 1)))


def test_bits_are_even_and_values_distinct() -> None:
    values = hash64(5, np.arange(20_000))
    assert len(np.unique(values)) == 20_000
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02
