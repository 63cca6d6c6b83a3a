"""The region-keyword scores in PyTorch, blocked: against a float64 reference, and what they are blocked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.harness.peak_memory import peak
from fastt2i.ops import region_keyword_loss, region_keyword_scores, tuning
from fastt2i.ops.dispatch import timing_cache
from fastt2i.ops.region_keyword import image_groups, reference
from fastt2i.ops.region_keyword.torch_impl import region_keyword_blocks, region_keyword_blocks_backward

VARIANTS = ["xmc", "damsm"]
#: Everything is computed in float32, so in half precision a gradient's own rounding is all there is: half a unit in the
#: last place, 2^-11 for float16 and 2^-8 for bfloat16.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
#: Images, captions, regions, keywords of a caption, features.
SHAPES = [
    (2, 3, 1, 1, 32),
    (3, 2, 49, 5, 100),
    (4, 6, 64, 16, 256),
    (3, 5, 256, 18, 256),
    (2, 7, 289, 32, 32),
    (5, 4, 49, 32, 768),
    (2, 9, 289, 18, 256),
    (70, 3, 64, 5, 100),
    (3, 60, 256, 16, 768),
]
MASKS = ["all", "ragged", "holes", "some captions empty", "none"]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, so that what nothing writes shows; and what is not deterministic raises."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def draw(shape: tuple[int, ...], dtype: torch.dtype, variant: str) -> tuple[Tensor, Tensor]:
    """Regions and keywords; for `damsm`, with dot products of about 1, so that its first softmax is not a choice."""
    images, captions, regions, count, features = shape
    random = torch.Generator().manual_seed(regions)
    scale = features**-0.25 if variant == "damsm" else 3.0
    v = scale * torch.randn(images, regions, features, generator=random)
    e = scale * torch.randn(captions, count, features, generator=random)
    return v.to(dtype), e.to(dtype)


def mask_of(kind: str, captions: int, count: int) -> Tensor:
    random = torch.Generator().manual_seed(captions)
    mask = torch.ones(captions, count, dtype=torch.bool)
    if kind == "ragged":
        mask = torch.arange(count) < torch.randint(1, count + 1, (captions, 1), generator=random)
    elif kind == "holes":
        mask = torch.rand(captions, count, generator=random) < 0.5
    elif kind == "some captions empty":
        mask[::2] = False
    elif kind == "none":
        mask[:] = False
    return mask


def upstream_of(v: Tensor, e: Tensor) -> Tensor:
    return torch.randn(len(v), len(e), generator=torch.Generator().manual_seed(1))


def all_of(v: Tensor, e: Tensor, mask: Tensor | None, **options: object) -> dict[str, Tensor]:
    """The scores and their gradients."""
    upstream = upstream_of(v, e)
    v, e = v.detach().requires_grad_(), e.detach().requires_grad_()
    scores = region_keyword_scores(v, e, mask, **options)
    dv, de = torch.autograd.grad(scores, (v, e), upstream.to(scores.dtype))
    return {"scores": scores.detach(), "regions": dv, "keywords": de}


def check(v: Tensor, e: Tensor, mask: Tensor | None, bound: float, **options: object) -> None:
    """Ours against float64."""
    ours = all_of(v, e, mask, impl="torch", **options)
    truth = all_of(v.double(), e.double(), mask, impl="reference", **options)
    for name in ours:
        assert ours[name].dtype == (torch.float32 if name == "scores" else v.dtype)
        assert (ours[name].double() - truth[name]).norm() <= bound * truth[name].norm(), name


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients(variant: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    v, e = draw(shape, dtype, variant)
    mask = mask_of("ragged", shape[1], shape[3])
    check(v, e, mask, BOUNDS[dtype], variant=variant, gamma_attention=4.0, gamma_pooling=5.0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("size", "threads"), [(1, 1), (1, 3), (5000, 1), (5000, 2), (20000, 1), (20000, 8)])
@pytest.mark.parametrize("gram", [0.0, 100.0])
@pytest.mark.parametrize("kept", [0, 50_000, 2**20])
def test_every_kind_of_mask_in_blocks_of_any_size(
    variant: str, kind: str, size: int, threads: int, gram: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caption at a time, several, and several images with one left over; by contexts, and by Gram matrices; images
    for each thread, and fewer than threads; with nothing kept for the backward pass, some images, and all."""
    monkeypatch.setattr(image_groups, "BUFFER", size)
    monkeypatch.setattr(image_groups, "SAVED", kept)
    monkeypatch.setattr(image_groups, "num_threads", lambda x: threads)
    monkeypatch.setattr(image_groups, "GRAM_FORWARD", gram)
    monkeypatch.setattr(image_groups, "GRAM_BACKWARD", gram)
    v, e = draw((5, 7, 20, 6, 24), torch.float32, variant)
    mask = mask_of(kind, 7, 6)
    check(v, e, mask, 1e-5, variant=variant)
    rubbish = torch.where(mask[..., None], e, torch.nan)
    clean, dirty = (all_of(v, x, mask, variant=variant, impl="torch") for x in (e, rubbish))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    assert not clean["keywords"][~mask].any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_any_size(variant: str, dtype: torch.dtype) -> None:
    v, e = draw((2, 3, 20, 6, 24), dtype, variant)
    check(100 * v, e / 100, None, BOUNDS[dtype], variant=variant)
    if variant == "xmc":
        check(1000 * v, 1e5 * e, None, BOUNDS[dtype], variant=variant)
    else:  # one large image and one small, and a large dot product among small ones
        v[0] *= 30
        check(v, e, None, BOUNDS[dtype], variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gram", [0.0, 100.0])
def test_norms_below_the_floors(variant: str, gram: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_groups, "GRAM_FORWARD", gram)
    monkeypatch.setattr(image_groups, "GRAM_BACKWARD", gram)
    v, e = draw((2, 2, 5, 3, 16), torch.float32, variant)
    v[0], e[0] = 1e-7 * v[0], 1e-8 * e[0]
    check(v, e, None, 1e-5, variant=variant)
    zero = all_of(0 * v, 0 * e, None, variant=variant, impl="torch")
    assert all(x.isfinite().all() for x in zero.values())


def test_sharp_attention_and_pooling() -> None:
    """exp(gamma) is beyond float32. The bound grows with gamma, which multiplies what rounding a similarity does."""
    v, e = draw((2, 2, 20, 3, 16), torch.float32, "xmc")
    check(v, e, None, 1e-5 * 300 / 5, gamma_attention=300.0, gamma_pooling=200.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_strides(variant: str) -> None:
    v, e = draw((2, 3, 20, 6, 24), torch.float32, variant)
    v, e = v.transpose(1, 2).contiguous().transpose(1, 2), e.transpose(0, 1).contiguous().transpose(0, 1)
    mask = mask_of("ragged", 6, 3).T
    assert not v.is_contiguous() and not e.is_contiguous() and not mask.is_contiguous()
    check(v, e, mask, 1e-5, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_give_the_same_bits(variant: str) -> None:
    v, e = draw((9, 40, 70, 18, 64), torch.float32, variant)
    mask = mask_of("ragged", 40, 18)
    first, second = (all_of(v, e, mask, variant=variant, impl="torch") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_that_nobody_wants_changes_nothing_of_the_other(variant: str) -> None:
    v, e = draw((3, 4, 9, 5, 16), torch.float32, variant)
    both = all_of(v, e, None, variant=variant, impl="torch")
    for name, alone in (("regions", v), ("keywords", e)):
        alone.requires_grad_()
        scores = region_keyword_scores(v, e, variant=variant, impl="torch")
        (gradient,) = torch.autograd.grad(scores, alone, upstream_of(v, e))
        assert torch.equal(gradient, both[name]), name
        alone.requires_grad_(False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gram", [0.0, 100.0])
def test_nan_features_come_out_as_nan(variant: str, gram: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_groups, "GRAM_FORWARD", gram)
    v, e = draw((3, 4, 5, 2, 16), torch.float32, variant)
    bad = v.clone()
    bad[1, 2, 3] = torch.nan
    scores = region_keyword_scores(bad, e, variant=variant, impl="torch")
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
    bad = e.clone()
    bad[2, 0, 0] = torch.nan
    scores = region_keyword_scores(v, bad, variant=variant, impl="torch")
    assert scores[:, 2].isnan().all() and scores[:, [0, 1, 3]].isfinite().all()
    given = all_of(v, bad, None, variant=variant, impl="torch")
    assert given["keywords"][2].isnan().any() and given["regions"].isnan().any()
    assert region_keyword_loss(v[:3], bad[1:], variant=variant, impl="torch").isnan()


@pytest.mark.parametrize(("images", "captions"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches(images: int, captions: int) -> None:
    v, e = torch.zeros(images, 4, 8, requires_grad=True), torch.zeros(captions, 2, 8, requires_grad=True)
    scores = region_keyword_scores(v, e, impl="torch")
    scores.sum().backward()
    assert scores.shape == (images, captions) and not v.grad.any() and not e.grad.any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gram", [0.0, 100.0])
def test_gradcheck(variant: str, gram: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_groups, "GRAM_FORWARD", gram)
    monkeypatch.setattr(image_groups, "GRAM_BACKWARD", gram)
    v, e = (x.requires_grad_() for x in draw((2, 3, 4, 3, 5), torch.float64, variant))
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 1]]).bool()
    assert torch.autograd.gradcheck(
        lambda v, e: region_keyword_scores(v, e, mask, variant=variant, impl="torch"), (v, e)
    )


def test_a_second_derivative_raises() -> None:
    v, e = draw((2, 2, 4, 2, 16), torch.float32, "xmc")
    v.requires_grad_()
    scores = region_keyword_scores(v, e, impl="torch")
    (dv,) = torch.autograd.grad(scores.sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='torch' it differentiates once; .* use impl='reference'"):
        dv.square().sum().backward()


def test_autocast_changes_neither_pass() -> None:
    v, e = draw((3, 4, 9, 5, 16), torch.float32, "xmc")
    plain = all_of(v, e, None, impl="torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_of(v, e, None, impl="torch")
        mixed = region_keyword_scores(v.bfloat16(), e, impl="torch")
    assert all(torch.equal(plain[name], inside[name]) for name in plain)
    assert torch.equal(mixed, region_keyword_scores(v.bfloat16().float(), e, impl="torch"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_knows_the_operators(variant: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        v, e = draw((2, 3, 5, 4, 16), dtype, variant)
        settings = variant, 4.0, 5.0, 2
        for keep in (False, True):
            # What is kept of slots that hold no keyword is anything, and opcheck would compare it.
            mask = mask_of("all" if keep else "ragged", 3, 4)
            outputs = region_keyword_blocks(v.detach(), e.detach(), mask, *settings, keep)
            inputs = (v.requires_grad_(), e.requires_grad_(), mask, *settings, keep)
            torch.library.opcheck(region_keyword_blocks, inputs)
        for wanted in ((True, True), (True, False), (False, True)):
            inputs = (upstream_of(v, e).to(outputs[0]), v.detach(), e.detach(), mask, *outputs, *settings, *wanted)
            torch.library.opcheck(region_keyword_blocks_backward, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_timed_and_checked_like_every_operator(variant: str, cache: object) -> None:
    v, e = draw((6, 5, 9, 4, 16), torch.float32, variant)
    mask = mask_of("ragged", 5, 4)
    with tuning():
        region_keyword_scores(v.requires_grad_(), e.requires_grad_(), mask, variant=variant)
    (taken,) = (
        t for call, t in timing_cache.times_of(v.device).items() if f"5x4x16 fp32 contiguous training {variant}" in call
    )
    assert set(taken) == {"reference", "torch"} and None not in taken.values()


def train(impl: str, batch: int, regions: int, count: int, features: int) -> Callable[[], None]:
    """A forward and a backward pass of captions with 1 to `count` keywords, evenly."""
    v, e = draw((batch, batch, regions, count, features), torch.float32, "xmc")
    v.requires_grad_(), e.requires_grad_()
    mask = torch.arange(count) < (torch.arange(batch) % count + 1)[:, None]
    return lambda: region_keyword_loss(v, e, mask, impl=impl).backward()


def test_the_count_of_memory_counts() -> None:
    def run() -> None:
        a = torch.ones(2**20)  # 4 MiB
        b = a + 1
        del a
        c = b + 1
        del b, c

    assert 0 <= peak(run) - 8 * 2**20 < 100  # a scalar or two beside them
    assert peak(lambda: None) == 0


def test_memory_is_at_most_a_tenth_of_the_references() -> None:
    shape = 128, 256, 16, 256
    ours, theirs = (peak(train(impl, *shape)) for impl in ("torch", "reference"))
    gradients = 4 * 128 * (256 + 16) * 256
    assert theirs > 4 * 128 * 128 * 16 * 256  # one of the tensors that it must hold
    assert gradients + image_groups.SAVED < ours < 2.5 * gradients + image_groups.SAVED
    assert ours <= theirs / 10


@pytest.mark.slow
def test_a_batch_of_512_takes_less_than_a_gigabyte() -> None:
    assert peak(train("torch", 512, 256, 16, 256)) < 1e9


def test_what_is_kept_for_the_backward_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    v, e = (x.requires_grad_() for x in draw((16, 16, 64, 8, 32), torch.float32, "xmc"))

    def kept() -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            region_keyword_scores(v, e, impl="torch")
        return sum(found.values())

    mask, statistics, scores = 16 * 8, 2 * 4 * 16 * 16 * 8, 4 * 16 * 16
    alone = v.nbytes + e.nbytes + mask + statistics + scores
    assert kept() == alone + 4 * 16 * 16 * 8 * (64 + 32)  # every similarity, every context
    monkeypatch.setattr(image_groups, "SAVED", 2**16)
    assert kept() == alone + 2**16


def test_the_backward_pass_may_run_with_other_threads() -> None:
    """What is kept is divided as the threads of the forward pass divided it."""
    v, e = (x.requires_grad_() for x in draw((7, 9, 20, 6, 24), torch.float32, "xmc"))
    upstream, threads = upstream_of(v, e), torch.get_num_threads()
    right = torch.autograd.grad(region_keyword_scores(v, e, impl="torch"), (v, e), upstream)
    try:
        torch.set_num_threads(3)
        scores = region_keyword_scores(v, e, impl="torch")
        torch.set_num_threads(1)
        torch.testing.assert_close(torch.autograd.grad(scores, (v, e), upstream), right)
    finally:
        torch.set_num_threads(threads)


def test_the_same_graph_can_be_differentiated_again() -> None:
    v, e = (x.requires_grad_() for x in draw((4, 5, 20, 6, 24), torch.float32, "damsm"))
    scores = region_keyword_scores(v, e, variant="damsm", impl="torch")
    first, second = (torch.autograd.grad(scores, (v, e), upstream_of(v, e), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_reference_is_the_truth_of_both() -> None:
    """impl='reference' runs the definition itself, not what it is compared with."""
    v, e = draw((2, 3, 5, 4, 16), torch.float64, "xmc")
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(
        region_keyword_scores(v, e, impl="reference"), reference.region_keyword_scores(v, e, mask, "xmc", 5.0, 5.0)
    )
