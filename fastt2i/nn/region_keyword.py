"""The region-keyword loss as a module."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastt2i import ops
from fastt2i.ops.checks import check_positive
from fastt2i.ops.region_keyword.checks import check_variant


class RegionKeywordLoss(nn.Module):
    """Contrastive loss of images and captions by their regions and keywords; see `fastt2i.ops.region_keyword_loss`.

    Args:
        variant: `xmc` or `damsm`.
        gamma_attention, gamma_pooling, gamma_matching: sharpness of attention, pooling and matching.
        gather: a process group whose ranks' batches are one; None is this process alone.
        equal_batch_sizes: with `gather`, all ranks' batches have the same sizes, and the host waits for none.
        impl: None lets the dispatcher choose.

    Raises:
        ValueError: there is no such variant, or a gamma is not positive and finite.
    """

    def __init__(
        self,
        variant: str = "xmc",
        gamma_attention: float = 5.0,
        gamma_pooling: float = 5.0,
        gamma_matching: float = 50.0,
        *,
        gather: ProcessGroup | None = None,
        equal_batch_sizes: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        check_variant("RegionKeywordLoss", variant)
        gammas = {"gamma_attention": gamma_attention, "gamma_pooling": gamma_pooling, "gamma_matching": gamma_matching}
        check_positive("RegionKeywordLoss", **gammas)
        self.variant = variant
        self.gamma_attention, self.gamma_pooling, self.gamma_matching = gamma_attention, gamma_pooling, gamma_matching
        self.gather, self.equal_batch_sizes, self.impl = gather, equal_batch_sizes, impl

    def forward(
        self,
        regions: Tensor,
        keywords: Tensor,
        keyword_mask: Tensor | None = None,
        *,
        exclude: Tensor | None = None,
    ) -> Tensor:
        return ops.region_keyword_loss(
            regions,
            keywords,
            keyword_mask,
            variant=self.variant,
            gamma_attention=self.gamma_attention,
            gamma_pooling=self.gamma_pooling,
            gamma_matching=self.gamma_matching,
            exclude=exclude,
            gather=self.gather,
            equal_batch_sizes=self.equal_batch_sizes,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        gammas = f"{self.gamma_attention}, {self.gamma_pooling}, {self.gamma_matching}"
        return f"variant={self.variant!r}, gammas=({gammas})"
