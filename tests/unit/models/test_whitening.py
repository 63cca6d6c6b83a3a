"""Whitened features are decorrelated where the captions vary, and quiet where they do not."""

from __future__ import annotations

import torch

from fastt2i.models.whitening import Whitening


def test_it_is_the_identity_until_fitted() -> None:
    x = torch.randn(3, 5)
    torch.testing.assert_close(Whitening(5)(x), x)


def test_loud_and_quiet_directions_come_out_alike() -> None:
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(6, 6))[0]
    x = torch.randn(5000, 6) * torch.tensor([10.0, 5.0, 3.0, 3.0, 1e-6, 1e-6]) @ mixing + 7
    whitening = Whitening(6)
    whitening.fit(x)
    y = whitening(x) @ mixing.T  # along the directions that were mixed
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    variance = y.var(0)
    assert variance[:4].max() / variance[:4].min() < 1.5  # they were 11 apart
    assert variance[4:].max() < 1e-6
    assert abs(y.square().mean() - 1) < 1e-3
    off_diagonal = torch.corrcoef(y[:, :4].T) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.02


def test_equal_features_leave_it_as_it_is() -> None:
    whitening = Whitening(4)
    whitening.fit(torch.ones(10, 4))
    assert torch.equal(whitening.matrix, torch.eye(4))


def test_fewer_captions_than_dimensions() -> None:
    whitening = Whitening(50)
    x = torch.randn(8, 50)
    whitening.fit(x)
    assert whitening(x).isfinite().all() and whitening(torch.randn(8, 50)).abs().max() < 100


def test_it_is_for_features_like_those_that_it_was_fitted_to() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([10.0, 5.0, 3.0, 1e-3, 1e-3, 1e-3])
    whitening = Whitening(6)
    assert whitening.is_for(torch.randn(50, 6))
    whitening.fit(torch.randn(500, 6) * spread)
    assert whitening.is_for(torch.randn(50, 6) * spread) and whitening.is_for(torch.randn(3, 6) * spread / 2)
    assert not whitening.is_for(torch.randn(50, 6) * spread.flip(0))
