"""Fewest bytes and operations are those that one counts by hand."""

from __future__ import annotations

from benchmarks.harness.roofline import of_gate, of_gated_convolution


def test_work_by_hand() -> None:
    # 1 image of 2 channels, 4x4, 1x1 kernel to 3 gated channels.
    work = of_gated_convolution(32, 12, 48, taps=2, itemsize=2, training=False)
    assert work.bytes == 2 * (32 + 12 + 48) and work.flops == 2 * 96 * 2
    training = of_gated_convolution(32, 12, 48, taps=2, itemsize=2, training=True)
    assert training.flops == 3 * work.flops and training.bytes == work.bytes + 2 * (2 * 48 + 3 * 48 + 44 + 44)
    assert of_gate(10, 4, False).bytes == 120
