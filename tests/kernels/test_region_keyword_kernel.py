"""The region-keyword kernels against a float64 reference: scores and both gradients, with unwritten lanes showing as
NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness.peak_memory import peak
from fastt2i.kernels import region_keyword as kernels
from fastt2i.ops import region_keyword_loss, region_keyword_scores

pytestmark = pytest.mark.usefixtures("poisoned")

#: Rounding of inputs is not the kernel's: they are drawn in the dtype. Attention, its gradient and contexts are rounded
#: once each before a product, with independent errors, and gradients once more: a few half units in the last place,
#: 2^-11 for float16 and 2^-8 for bfloat16.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
#: Images, captions, regions, keywords of a caption, features. In float32 the interpreter walks in small steps.
SHAPES = [(2, 3, 1, 1, 32), (3, 2, 49, 5, 100), (2, 2, 64, 16, 32), (1, 3, 289, 18, 32), (2, 1, 49, 32, 300)]
SHAPES += [(1, 2, 256, 5, 256), (1, 1, 10, 2, 768)]
LARGE = [(4, 3, 64, 16, 256), (2, 3, 289, 18, 256), (3, 2, 49, 32, 768), (2, 2, 256, 5, 384)]
CASES = [
    *((shape, torch.float32) for shape in SHAPES),
    *((shape, dtype) for dtype in (torch.float16, torch.bfloat16) for shape in SHAPES + LARGE),
]
MASKS = ["all", "ragged", "holes", "some captions empty", "none"]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, variant: str) -> tuple[Tensor, Tensor]:
    """Regions and keywords; for `damsm`, with dot products of about 1, so that its first softmax is not a choice."""
    images, captions, regions, count, features = shape
    random = torch.Generator().manual_seed(regions)
    scale = features**-0.25 if variant == "damsm" else 3.0
    v = scale * torch.randn(images, regions, features, generator=random)
    e = scale * torch.randn(captions, count, features, generator=random)
    return v.to(device, dtype), e.to(device, dtype)


def mask_of(kind: str, captions: int, count: int, device: torch.device) -> Tensor:
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
    return mask.to(device)


def all_of(v: Tensor, e: Tensor, mask: Tensor | None, upstream: Tensor, **options: object) -> dict[str, Tensor]:
    """The scores and their gradients."""
    v, e = v.detach().requires_grad_(), e.detach().requires_grad_()
    scores = region_keyword_scores(v, e, mask, **options)
    dv, de = torch.autograd.grad(scores, (v, e), upstream.to(scores.dtype))
    return {"scores": scores.detach(), "regions": dv, "keywords": de}


def upstream_of(v: Tensor, e: Tensor) -> Tensor:
    return torch.randn(len(v), len(e), generator=torch.Generator().manual_seed(1)).to(v.device)


def check(v: Tensor, e: Tensor, mask: Tensor | None, bound: float, loss_scale: float = 1.0, **options: object) -> None:
    """Ours against float64."""
    upstream = loss_scale * upstream_of(v, e)
    ours = all_of(v, e, mask, upstream, impl="triton", **options)
    truth = all_of(v.double(), e.double(), mask, upstream, impl="reference", **options)
    for name in ours:
        assert ours[name].dtype == (torch.float32 if name == "scores" else v.dtype)
        assert (ours[name].double() - truth[name]).norm() <= bound * truth[name].norm(), name


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_scores_and_gradients(variant: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    v, e = draw(shape, dtype, device, variant)
    mask = mask_of("ragged", shape[1], shape[3], device)
    check(v, e, mask, BOUNDS[dtype], variant=variant, gamma_attention=4.0, gamma_pooling=5.0)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_loss_and_its_gradients(variant: str, dtype: torch.dtype, device: torch.device) -> None:
    """Sharpened by gamma_matching, as training has it, with pairs that are no negatives."""
    v, e = draw((5, 5, 20, 6, 32), dtype, device, variant)
    mask, classes = mask_of("ragged", 5, 6, device), torch.tensor([0, 1, 0, 2, 3], device=device)
    gammas = {"gamma_attention": 4.0, "gamma_pooling": 5.0, "gamma_matching": 10.0}
    settings = {"variant": variant, "exclude": classes[:, None] == classes, **gammas}
    results = []
    for impl, inputs in (("triton", (v, e)), ("reference", (v.double(), e.double()))):
        inputs = [x.requires_grad_() for x in inputs]
        loss = region_keyword_loss(*inputs, mask, impl=impl, **settings)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for name, ours, truth in zip(("loss", "regions", "keywords"), *results, strict=True):
        assert (ours.double() - truth).norm() <= BOUNDS[dtype] * truth.norm(), name


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_a_gradient_that_nobody_wants_is_not_computed(
    variant: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    v, e = draw((3, 4, 20, 5, 16), torch.float32, device, variant)
    both = all_of(v, e, None, upstream_of(v, e), variant=variant, impl="triton")
    for name, alone, spared in (("regions", v, "keywords_kernel"), ("keywords", e, "regions_kernel")):
        with monkeypatch.context() as patched:
            patched.setattr(kernels, spared, None)  # no launch
            scores = region_keyword_scores(v, e, variant=variant, impl="triton")
            assert not scores.requires_grad
            alone.requires_grad_()
            scores = region_keyword_scores(v, e, variant=variant, impl="triton")
            (gradient,) = torch.autograd.grad(scores, alone, upstream_of(v, e))
        assert torch.equal(gradient, both[name]), name
        alone.requires_grad_(False)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_and_several_groups_of_images(
    variant: str, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    v, e = draw((5, 7, 20, 6, 24), torch.float32, device, variant)
    mask = mask_of(kind, 7, 6, device)
    monkeypatch.setattr(kernels, "WORKSPACE", 2 * 42 * (2 * 32 + 32) * 4)  # two images, and one left over
    check(v, e, mask, 1e-5, variant=variant)
    rubbish = torch.where(mask[..., None], e, torch.nan)
    upstream = upstream_of(v, e)
    clean, dirty = (all_of(v, x, mask, upstream, variant=variant, impl="triton") for x in (e, rubbish))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    assert not clean["keywords"][~mask].any()


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_features_of_any_size(variant: str, dtype: torch.dtype, device: torch.device) -> None:
    """Norms whose squares and products float16 cannot hold; the gradients, too, are brought into its range."""
    v, e = draw((2, 3, 20, 6, 24), dtype, device, variant)
    check(100 * v, e / 100, None, BOUNDS[dtype], loss_scale=1e3, variant=variant)
    if variant == "xmc":
        check(1000 * v, 100 * e, None, BOUNDS[dtype], loss_scale=1e4, variant=variant)
    else:  # one large image and one small, and a large dot product among small ones
        v[0] *= 30
        check(v, e, None, BOUNDS[dtype], variant=variant)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_norms_below_the_floors(variant: str, device: torch.device) -> None:
    v, e = draw((2, 2, 5, 3, 16), torch.float32, device, variant)
    v[0], e[0] = 1e-7 * v[0], 1e-8 * e[0]
    check(v, e, None, 1e-5, variant=variant)
    zero = all_of(0 * v, 0 * e, None, upstream_of(v, e), variant=variant, impl="triton")
    assert all(x.isfinite().all() for x in zero.values())


def test_sharp_attention_and_pooling(device: torch.device) -> None:
    """exp(gamma) is beyond float32. The bound grows with gamma, which multiplies what rounding a similarity does."""
    v, e = draw((2, 2, 20, 3, 16), torch.float32, device, "xmc")
    check(v, e, None, 1e-5 * 300 / 5, gamma_attention=300.0, gamma_pooling=200.0)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_any_strides(variant: str, device: torch.device) -> None:
    v, e = draw((2, 3, 20, 6, 24), torch.float32, device, variant)
    v, e = v.transpose(1, 2).contiguous().transpose(1, 2), e.transpose(0, 1).contiguous().transpose(0, 1)
    mask = mask_of("ragged", 6, 3, device).T
    assert not v.is_contiguous() and not e.is_contiguous()
    check(v, e, mask, 1e-5, variant=variant)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_two_runs_give_the_same_bits(variant: str, device: torch.device) -> None:
    v, e = draw((3, 4, 70, 18, 64), torch.bfloat16, device, variant)
    first, second = (all_of(v, e, None, upstream_of(v, e), variant=variant, impl="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_nan_features_come_out_as_nan(variant: str, device: torch.device) -> None:
    v, e = draw((3, 4, 5, 2, 16), torch.float32, device, variant)
    bad = v.clone()
    bad[1, 2, 3] = torch.nan
    scores = region_keyword_scores(bad, e, variant=variant, impl="triton")
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
    bad = e.clone()
    bad[2, 0, 0] = torch.nan
    scores = region_keyword_scores(v, bad, variant=variant, impl="triton")
    assert scores[:, 2].isnan().all() and scores[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_norms_that_float32_cannot_square_come_out_as_nan(variant: str, device: torch.device) -> None:
    v, e = draw((3, 4, 5, 2, 16), torch.float32, device, variant)
    big = v.clone()
    big[1] *= 1e18
    check(big, e, None, 1e-5, variant=variant)
    big[1] *= 100
    scores = region_keyword_scores(big, e, variant=variant, impl="triton")
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
    big = e.clone()
    big[2] *= 1e20
    assert region_keyword_scores(v, big, variant=variant, impl="triton")[:, 2].isnan().all()


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_a_caption_without_keywords_scores_zero_against_nan_too(variant: str, device: torch.device) -> None:
    v, e = draw((2, 2, 5, 3, 16), torch.float32, device, variant)
    v[1] = torch.nan
    for kind in ("none", "some captions empty"):
        mask = mask_of(kind, 2, 3, device)
        scores = region_keyword_scores(v, e, mask, variant=variant, impl="triton")
        assert not scores[:, ~mask.any(dim=1)].any()


@pytest.mark.parametrize(("images", "captions"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches(images: int, captions: int, device: torch.device) -> None:
    v = torch.zeros(images, 4, 8, device=device, requires_grad=True)
    e = torch.zeros(captions, 2, 8, device=device, requires_grad=True)
    scores = region_keyword_scores(v, e, impl="triton")
    scores.sum().backward()
    assert scores.shape == (images, captions) and not v.grad.any() and not e.grad.any()


def test_a_second_derivative_raises(device: torch.device) -> None:
    v, e = draw((2, 2, 4, 2, 16), torch.float32, device, "xmc")
    v.requires_grad_()
    scores = region_keyword_scores(v, e, impl="triton")
    (dv,) = torch.autograd.grad(scores.sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        dv.square().sum().backward()


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.region_keyword.triton_ops import region_keyword, region_keyword_backward

    for variant in ("xmc", "damsm"):
        v, e = draw((2, 3, 5, 4, 16), torch.float32, device, variant)
        mask = mask_of("ragged", 3, 4, device)
        settings = (variant, 4.0, 5.0)
        scores, statistics, *operands = region_keyword(v, e, mask, *settings)
        torch.library.opcheck(region_keyword, (v.requires_grad_(), e.requires_grad_(), mask, *settings))
        for wanted in ((True, True), (False, True)):
            features = (v.detach(), e.detach())
            inputs = (upstream_of(v, e), *features, scores, statistics, operands, *settings, *wanted)
            torch.library.opcheck(region_keyword_backward, inputs)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compiles_without_a_graph_break(variant: str, backend: str, dynamic: bool, device: torch.device) -> None:
    v, e = draw((2, 3, 5, 4, 16), torch.float32, device, variant)
    upstream = upstream_of(v, e)
    v.requires_grad_(), e.requires_grad_()

    def scores(v: Tensor, e: Tensor) -> Tensor:
        return region_keyword_scores(v, e, variant=variant, impl="triton")

    torch.compiler.reset()  # what was compiled for other parameters counts against a limit
    function = torch.compile(scores, fullgraph=True, backend=backend, dynamic=dynamic)
    for keep in (3, 2):
        eager = all_of(v, e[:keep], None, upstream[:, :keep], variant=variant, impl="triton")
        part = e[:keep].detach().requires_grad_()
        out = function(v, part)
        gradients = torch.autograd.grad(out, (v, part), upstream[:, :keep])
        torch.testing.assert_close(dict(zip(eager, (out, *gradients), strict=True)), eager)


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_takes_features_of_two_dtypes_and_changes_nothing(
    variant: str, compiled: bool, device: torch.device
) -> None:
    v, e = draw((2, 3, 5, 4, 16), torch.float32, device, variant)
    plain = all_of(v, e, None, upstream_of(v, e), variant=variant, impl="triton")

    def inside(v: Tensor, e: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return region_keyword_scores(v, e, variant=variant, impl="triton")

    torch.compiler.reset()
    run = torch.compile(inside, fullgraph=True, backend="aot_eager") if compiled else inside
    v.requires_grad_(), e.requires_grad_()
    scores = run(v, e)
    gradients = torch.autograd.grad(scores, (v, e), upstream_of(v, e))
    torch.testing.assert_close(dict(zip(plain, (scores, *gradients), strict=True)), plain, rtol=0, atol=0)
    mixed, same = run(v.bfloat16(), e), region_keyword_scores(v.bfloat16().float(), e, variant=variant, impl="triton")
    torch.testing.assert_close(mixed, same, rtol=0, atol=0)


def test_what_it_cannot_do_is_said_in_one_sentence(device: torch.device) -> None:
    x = torch.zeros(1, 1, 8, device=device)
    with pytest.raises(RuntimeError, match="impl='triton' cannot run: the kernels compute in float32"):
        region_keyword_scores(x.double(), x.double(), impl="triton")
    with pytest.raises(RuntimeError, match="keywords has 129 for every caption; .* takes at most 128"):
        region_keyword_scores(x, x.expand(1, 129, 8), variant="damsm", impl="triton")


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_memory_holds_a_bounded_part_of_the_attention(
    variant: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside inputs, statistics and gradients, the workspace and no more: the attention of all pairs never is there."""
    images, captions, regions, count, features = shape = (12, 12, 64, 8, 32)
    v, e = draw(shape, torch.float32, device, variant)
    mask = mask_of("all", captions, count, device)
    rows = captions * count
    monkeypatch.setattr(kernels, "WORKSPACE", 2 * rows * (2 * regions + features) * 4)  # two images at once
    taken = {}
    for impl in ("triton", "reference"):
        upstream = upstream_of(v, e)

        def run(impl: str = impl, upstream: Tensor = upstream) -> None:
            all_of(v, e, mask, upstream, impl=impl, variant=variant)

        run()  # kernels are compiled now
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            taken[impl] = torch.cuda.max_memory_allocated() - before
        else:
            taken[impl] = peak(run)
    statistics = 4 * images * rows * 4  # cosines, log-sum-exps, squared norms, and their coefficients' share
    inputs = 4 * (v.nbytes + e.nbytes)  # packed, their gradients, and those in float32 on the way
    parts = 2 * rows * features * 4
    assert taken["triton"] <= kernels.WORKSPACE + statistics + inputs + parts
    assert taken["triton"] < kernels.WORKSPACE * images / 2  # what all images at once would take
    assert taken["triton"] < taken["reference"] / 2
