"""Region-keyword scores and matching losses: against the published losses told anew, and at the edges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastt2i.ops import global_match_loss, region_keyword_attention, region_keyword_loss, region_keyword_scores
from tests.unit.ops.region_keyword.published import (
    attngan_attention,
    attngan_sent_loss,
    attngan_words_loss,
    xmcgan_attention,
    xmcgan_contrastive_loss,
    xmcgan_word_loss,
)


def features(batch: int, regions: int, words: int, dim: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(batch * 1000 + regions)
    shape = {"dtype": torch.float64, "generator": random}
    return scale * torch.randn(batch, regions, dim, **shape), scale * torch.randn(batch, words, dim, **shape)


def mask_of(lengths: list[int], words: int) -> Tensor:
    return torch.arange(words) < torch.tensor(lengths)[:, None]


def assert_same_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


LENGTHS = [5, 1, 3, 4, 2]


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_damsm_is_attngans_words_loss(impl: str) -> None:
    regions, words = features(5, 6, 5, 7)
    regions.requires_grad_(), words.requires_grad_()
    classes = [0, 1, 0, 2, 1]
    exclude = torch.tensor(classes)[:, None] == torch.tensor(classes)
    ours = region_keyword_loss(
        regions,
        words,
        mask_of(LENGTHS, 5),
        variant="damsm",
        gamma_attention=4.0,
        gamma_pooling=5.0,
        gamma_matching=10.0,
        exclude=exclude,
        impl=impl,
    )
    images = regions.transpose(1, 2).unflatten(2, (2, 3))
    theirs = attngan_words_loss(images, words.transpose(1, 2), LENGTHS, classes, (4.0, 5.0, 10.0))
    assert_same_with_gradients(ours, theirs, [regions, words])


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_xmc_is_xmcgans_word_loss(scale: float, impl: str) -> None:
    regions, words = features(5, 9, 5, 7, scale)
    regions.requires_grad_(), words.requires_grad_()
    ours = region_keyword_loss(regions, words, mask_of(LENGTHS, 5), impl=impl)
    assert_same_with_gradients(ours, xmcgan_word_loss(regions, words, LENGTHS, (5, 5, 50)), [regions, words])


def test_global_loss_is_both_papers_sentence_loss() -> None:
    images, texts = (x[:, 0].clone().requires_grad_() for x in features(6, 1, 1, 9))
    assert_same_with_gradients(
        global_match_loss(images, texts), xmcgan_contrastive_loss(images, texts, 0.1), [images, texts]
    )
    ours = global_match_loss(images, texts, temperature=1 / 10)
    assert_same_with_gradients(ours, attngan_sent_loss(images, texts, list(range(6)), 10.0), [images, texts])


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the document's code defines, run from its first block to its last, as one process of a group of one."""
    text = (Path(__file__).parents[4] / "docs/region-keyword.md").read_text()
    names: dict[str, Any] = {}
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(block, names)
    finally:
        dist.destroy_process_group()
    return names


def test_the_documents_code_trains(document: dict[str, Any]) -> None:
    assert document["scores"].shape == (32, 32) and document["loss"].isfinite()
    assert document["regions"].grad.any() and document["keywords"].grad.any()


@pytest.mark.parametrize("classes", [[0, 1, 0, 2, 1], [0, 1, 2, 3, 4], None])
def test_the_recipe_for_attngan(document: dict[str, Any], classes: list[int] | None) -> None:
    regions, words = features(5, 6, 5, 7)
    images, words = (
        regions.transpose(1, 2).unflatten(2, (2, 3)).requires_grad_(),
        words.transpose(1, 2).requires_grad_(),
    )
    ids = None if classes is None else torch.tensor(classes)
    ours = document["words_loss"](images, words, torch.tensor(LENGTHS), ids)
    theirs = attngan_words_loss(images, words, LENGTHS, classes or list(range(5)), (4.0, 5.0, 10.0))
    assert_same_with_gradients(ours, theirs, [images, words])
    codes, sentences = (x[:, 0].clone().requires_grad_() for x in features(5, 1, 1, 9))
    ours = document["sent_loss"](codes, sentences, ids)
    theirs = attngan_sent_loss(codes, sentences, classes or list(range(5)), 10.0)
    assert_same_with_gradients(ours, theirs, [codes, sentences])


def test_the_recipe_for_xmcgan(document: dict[str, Any]) -> None:
    regions, words = (x.requires_grad_() for x in features(5, 9, 5, 7))
    ours = document["word_loss"](regions, words, torch.tensor(LENGTHS))
    assert_same_with_gradients(ours, xmcgan_word_loss(regions, words, LENGTHS, (5, 5, 50)), [regions, words])


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_hidden_keywords_take_no_part(variant: str) -> None:
    regions, words = features(4, 6, 5, 7)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]], dtype=torch.bool)
    scores = region_keyword_scores(regions, words, mask, variant=variant)
    for j in range(4):
        alone = region_keyword_scores(regions, words[j : j + 1, mask[j]], variant=variant)
        torch.testing.assert_close(scores[:, j : j + 1], alone)
    poisoned = torch.where(mask[..., None], words, torch.nan)
    torch.testing.assert_close(region_keyword_scores(regions, poisoned, mask, variant=variant), scores)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_a_caption_without_keywords_scores_zero_and_sends_no_gradient(variant: str, impl: str) -> None:
    regions, words = features(3, 4, 2, 5)
    words[1] = torch.nan
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    regions.requires_grad_(), words.requires_grad_()
    scores = region_keyword_scores(regions, words, mask, variant=variant, impl=impl)
    assert torch.equal(scores[:, 1], torch.zeros(3, dtype=torch.float64))
    to_regions, to_words = torch.autograd.grad(scores[:, 1].sum(), [regions, words], retain_graph=True)
    assert not to_regions.any() and not to_words.any()
    to_regions, to_words = torch.autograd.grad(scores.sum(), [regions, words])
    assert to_regions.isfinite().all() and to_words.isfinite().all() and not to_words[1].any()
    none = region_keyword_loss(regions, words, torch.zeros_like(mask), variant=variant, impl=impl)
    assert none.item() == pytest.approx(2 * math.log(3))


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_nan_features_come_out_as_nan(variant: str) -> None:
    regions, words = features(3, 4, 2, 5)
    regions[1, 2, 3] = torch.nan
    scores = region_keyword_scores(regions, words, variant=variant)
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
    regions, words = features(3, 4, 2, 5)
    words[2, 0, 0] = torch.nan
    assert region_keyword_scores(regions, words, variant=variant)[:, 2].isnan().all()
    assert region_keyword_loss(regions, words, variant=variant).isnan()
    assert global_match_loss(regions[:, 0], words[:, 0]).isnan()


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_norms_that_float32_cannot_square_come_out_as_nan(variant: str, impl: str) -> None:
    """Divided by an infinite norm they would be zeros, and the score a number; right up to there."""
    regions, words = (x.float() for x in features(3, 4, 2, 5))
    for large, scores_of in ((1e18, torch.isfinite), (1e20, torch.isnan)):
        big = regions.clone()
        big[1] *= large
        scores = region_keyword_scores(big, words, variant=variant, impl=impl)
        assert scores_of(scores[1]).all() and scores[[0, 2]].isfinite().all()
        exact = region_keyword_scores(big.double(), words.double(), variant=variant)
        torch.testing.assert_close(scores[scores.isfinite()].double(), exact[scores.isfinite()], rtol=1e-5, atol=1e-5)
        big = words.clone()
        big[2] *= large
        assert scores_of(region_keyword_scores(regions, big, variant=variant, impl=impl)[:, 2]).all()
    assert global_match_loss(1e20 * regions[:, 0], words[:, 0]).isnan()


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_a_caption_without_keywords_scores_zero_against_nan_too(variant: str, impl: str) -> None:
    regions, words = features(2, 4, 2, 5)
    regions[1] = torch.nan
    none = torch.zeros(2, 2, dtype=torch.bool)
    assert not region_keyword_scores(regions, words, none, variant=variant, impl=impl).any()
    one = torch.tensor([[True, False], [False, False]])
    scores = region_keyword_scores(regions, words, one, variant=variant, impl=impl)
    assert scores[1, 0].isnan() and scores[0, 0].isfinite() and not scores[:, 1].any()


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_zero_features_give_finite_gradients(variant: str) -> None:
    regions, words = (torch.zeros(3, 4, 5, requires_grad=True) for _ in range(2))
    loss = region_keyword_loss(regions, words, variant=variant)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [regions, words]))
    images, texts = (torch.zeros(3, 5, requires_grad=True) for _ in range(2))
    assert all(g.isfinite().all() for g in torch.autograd.grad(global_match_loss(images, texts), [images, texts]))


def test_excluded_pairs_are_no_negatives_and_the_diagonal_always_stays() -> None:
    regions, words = features(4, 6, 5, 7)
    exclude = torch.zeros(4, 4, dtype=torch.bool)
    exclude[0, 2] = True
    scores = 50 * region_keyword_scores(regions, words)
    scores[0, 2] = -math.inf
    own = torch.arange(4)
    expected = F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)
    for diagonal in (False, True):
        marked = exclude | (torch.eye(4, dtype=torch.bool) & diagonal)
        torch.testing.assert_close(region_keyword_loss(regions, words, exclude=marked), expected)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert region_keyword_loss(regions, words, exclude=everything) == 0
    assert global_match_loss(regions[:, 0], words[:, 0], exclude=everything) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    regions, words = (x.to(dtype) for x in features(4, 6, 5, 7))
    scores = region_keyword_scores(regions, words)
    assert scores.dtype == torch.float32
    exact = region_keyword_scores(regions.double(), words.double())
    assert (scores - exact).norm() <= 1e-6 * exact.norm()
    assert region_keyword_loss(regions, words).dtype == torch.float32


def test_empty_batches() -> None:
    regions, words = torch.randn(0, 4, 5, requires_grad=True), torch.randn(0, 3, 5)
    assert region_keyword_scores(regions, words).shape == (0, 0)
    assert region_keyword_scores(torch.randn(2, 4, 5), words).shape == (2, 0)
    loss = region_keyword_loss(regions, words)
    loss.backward()
    assert loss == 0 and regions.grad is not None and regions.grad.shape == (0, 4, 5)
    assert global_match_loss(torch.randn(0, 5), torch.randn(0, 5)) == 0


def test_autocast_computes_in_float32_and_takes_mixed_inputs() -> None:
    regions, words = (x.float() for x in features(4, 6, 5, 7))
    plain = region_keyword_loss(regions, words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert region_keyword_loss(regions, words) == plain
        assert region_keyword_loss(regions.bfloat16(), words).dtype == torch.float32
        assert global_match_loss(regions[:, 0].bfloat16(), words[:, 0]).dtype == torch.float32


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_gradcheck(variant: str) -> None:
    regions, words = features(3, 4, 3, 5)
    mask = mask_of([3, 1, 2], 3)

    def loss(v: Tensor, e: Tensor) -> Tensor:
        return region_keyword_loss(v, e, mask, variant=variant, gamma_matching=10.0)

    assert torch.autograd.gradcheck(loss, (regions.requires_grad_(), words.requires_grad_()))


@given(
    sizes=st.tuples(*(st.integers(1, 7) for _ in range(5))),
    variant=st.sampled_from(["xmc", "damsm"]),
    impl=st.sampled_from(["reference", "torch"]),
    data=st.data(),
)
def test_scores_do_not_depend_on_order(sizes: tuple[int, ...], variant: str, impl: str, data: st.DataObject) -> None:
    """Permuting images, captions, keywords or regions permutes the scores, or leaves them."""
    images, captions, regions, words, dim = sizes
    v, e = features(images, regions, 1, dim)[0], features(captions, 1, words, dim)[1]
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=captions * words, max_size=captions * words)))
    mask = mask.reshape(captions, words)
    scores = region_keyword_scores(v, e, mask, variant=variant, impl=impl)
    assert scores.shape == (images, captions) and scores.isfinite().all()
    i, j, r, t = (torch.tensor(data.draw(st.permutations(range(n)))) for n in (images, captions, regions, words))
    shuffled = region_keyword_scores(v[i][:, r], e[j][:, t], mask[j][:, t], variant=variant, impl=impl)
    torch.testing.assert_close(shuffled, scores[i][:, j])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    regions, words = (x.float() for x in features(4, 6, 5, 7))
    mask, exclude = mask_of([5, 1, 3, 4], 5), torch.eye(4, dtype=torch.bool)
    compiled = torch.compile(region_keyword_loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        compiled(regions, words, mask, exclude=exclude), region_keyword_loss(regions, words, mask, exclude=exclude)
    )


@pytest.mark.parametrize(("variant", "published"), [("damsm", attngan_attention), ("xmc", xmcgan_attention)])
def test_attention_is_that_of_the_published_losses(variant: str, published: Callable[..., Tensor]) -> None:
    regions, words = features(5, 6, 5, 7)
    mask = mask_of([5, 1, 0, 3, 2], 5)
    words = torch.where(mask[..., None], words, torch.nan)
    ours = region_keyword_attention(regions, words, mask, variant=variant, gamma_attention=4.0)
    assert ours.shape == (5, 5, 6) and not ours[~mask].any()
    for b, length in enumerate([5, 1, 0, 3, 2]):
        theirs = published(regions[b].T, words[b, :length].T, 4.0)
        torch.testing.assert_close(ours[b, :length], theirs, rtol=1e-10, atol=0)
    assert torch.autograd.gradcheck(
        lambda v, e: region_keyword_attention(v, e, variant=variant), [x.requires_grad_() for x in features(2, 3, 2, 4)]
    )


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
def test_attention_at_the_edges(variant: str) -> None:
    regions, words = (x.float() for x in features(3, 4, 2, 5))
    plain = region_keyword_attention(regions, words, variant=variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(region_keyword_attention(regions, words, variant=variant), plain)
        assert region_keyword_attention(regions.bfloat16(), words, variant=variant).dtype == torch.float32
    compiled = torch.compile(region_keyword_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(regions, words, variant=variant), plain)
    assert region_keyword_attention(regions[:0], words[:0], variant=variant).shape == (0, 2, 4)
    regions[1, 2, 3] = torch.nan
    attention = region_keyword_attention(regions, words, variant=variant)
    assert attention[1].isnan().any() and attention[[0, 2]].isfinite().all()


V, E = torch.randn(2, 4, 5), torch.randn(2, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ((V, torch.randn(2, 3, 6)), ValueError, r"regions has shape \(2, 4, 5\) and keywords \(2, 3, 6\).*same D"),
        ((V[0], E), ValueError, r"\(4, 5\)"),
        ((V, E.double()), TypeError, "keywords is torch.float64 but regions is torch.float32"),
        ((V.int(), E.int()), TypeError, "regions is torch.int32; it must be float32"),
        ((V, E, torch.ones(2, 3)), TypeError, "keyword_mask is torch.float32; it must be bool"),
        ((V, E, torch.ones(3, 2).bool()), ValueError, r"keyword_mask has shape \(3, 2\); it must be \(2, 3\)"),
        ((V[:, :0], E), ValueError, "at least one region, one keyword"),
        ((V, torch.randn(3, 3, 5)), ValueError, "there are 2 images and 3 captions"),
        ((V, E, [[True] * 3] * 2), TypeError, "keyword_mask is a list; it must be a torch.Tensor"),
        ((V.tolist(), E), TypeError, "regions is a list; it must be a torch.Tensor"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments: tuple[Tensor, ...], kind: type, sentence: str) -> None:
    with pytest.raises(kind, match=f"region_keyword_loss: .*{sentence}"):
        region_keyword_loss(*arguments)


def test_bad_settings_are_one_sentence() -> None:
    for arguments, kind, sentence in (
        ((V, torch.randn(3, 3, 5)), ValueError, "there are 2 images and 3 captions; caption i must be image i's"),
        ((V, E[..., :4]), ValueError, "the same D"),
        ((V, E, torch.ones(2, 3)), TypeError, "keyword_mask is torch.float32; it must be bool"),
    ):
        with pytest.raises(kind, match=f"region_keyword_attention: .*{sentence}"):
            region_keyword_attention(*arguments)
    with pytest.raises(ValueError, match="region_keyword_attention: gamma_attention is 0; it must be more than 0"):
        region_keyword_attention(V, E, gamma_attention=0)
    with pytest.raises(ValueError, match="variant is 'xm'; it must be one of xmc, damsm"):
        region_keyword_loss(V, E, variant="xm")
    with pytest.raises(ValueError, match="gamma_attention is 0; it must be more than 0"):
        region_keyword_scores(V, E, gamma_attention=0)
    for name in ("gamma_attention", "gamma_pooling", "gamma_matching"):
        for gamma in (torch.inf, torch.nan, -1.0):
            with pytest.raises(ValueError, match=f"{name} is {gamma}; it must be more than 0 and finite"):
                region_keyword_loss(V, E, **{name: gamma})
    for call in (region_keyword_loss, lambda v, e, exclude: global_match_loss(v[:, 0], e[:, 0], exclude=exclude)):
        with pytest.raises(TypeError, match="exclude is a list; it must be a torch.Tensor"):
            call(V, E, exclude=[[False, True], [True, False]])
    with pytest.raises(TypeError, match="exclude is torch.float32; it must be bool"):
        region_keyword_loss(V, E, exclude=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"exclude has shape \(3, 3\); it must be \(2, 2\)"):
        region_keyword_loss(V, E, exclude=torch.zeros(3, 3).bool())
    with pytest.raises(ValueError, match=r"global_features has shape \(2, 5\) and sentences \(2, 6\)"):
        global_match_loss(torch.randn(2, 5), torch.randn(2, 6))
    with pytest.raises(ValueError, match="temperature is -1; it must be more than 0"):
        global_match_loss(V[:, 0], E[:, 0], temperature=-1)
    with pytest.raises(ValueError, match="impl is 'cuda'; it must be None or one of reference, torch, triton"):
        region_keyword_scores(V, E, impl="cuda")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run: "):
        region_keyword_scores(V, E, impl="triton")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_mask_of_whole_numbers_is_that_of_a_tokenizer(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(region_keyword_loss(V, E, mask.to(dtype)), region_keyword_loss(V, E, mask.bool()))
