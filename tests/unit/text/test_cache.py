"""The cache of text features: keyed by all that decides them, whole or not there, the same however it was made."""

from __future__ import annotations

import hashlib
import resource
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastt2i.errors import UserError
from fastt2i.text.cache import TextCache, cache_key
from fastt2i.text.features import TextFeatures

CAPTIONS = [f"caption number {n}" for n in range(1300)]


class FakeEncoder:
    """Features that are a hash of the caption."""

    def __init__(self, digest: str = "d", max_keywords: int = 3) -> None:
        self.digest, self.sentence_dim, self.max_keywords = digest, 8, max_keywords
        self.stop_words: frozenset[str] = frozenset({"the"})
        self.idf = {"caption": 1.0}
        self.calls = 0

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        self.calls += 1
        bits = np.stack([np.frombuffer(hashlib.sha256(c.encode()).digest(), np.uint8) for c in captions])
        values = torch.from_numpy(bits[:, :32] / 64.0).float()
        keywords = values.reshape(len(captions), 4, 8)[:, : self.max_keywords]
        return TextFeatures(values[:, :8], keywords, keywords[..., 0] > 1)


def files(directory: Path) -> dict[str, bytes]:
    (folder,) = (path for path in directory.iterdir() if path.is_dir())
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_rows_are_the_encoders_features(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    cache = TextCache.open(encoder, CAPTIONS, tmp_path, progress=False)
    assert len(cache) == len(CAPTIONS)
    ids = torch.tensor([1299, 0, 700, 700])
    rows, direct = cache.rows(ids), encoder([CAPTIONS[i] for i in ids])
    for ours, theirs in zip(rows, direct, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)
    rows.sentence.zero_()  # a copy: the cache is untouched
    torch.testing.assert_close(cache.rows(ids).sentence, direct.sentence)


def test_columns_without_a_keyword_are_left_out(tmp_path: Path) -> None:
    class Sparse(FakeEncoder):
        def __call__(self, captions: Sequence[str]) -> TextFeatures:
            features = super().__call__(captions)
            return features._replace(mask=torch.arange(3).expand(len(captions), 3) < 2)

    rows = TextCache.open(Sparse(), CAPTIONS, tmp_path, progress=False).rows(torch.arange(4))
    assert rows.keywords.shape == (4, 2, 8) and rows.mask.shape == (4, 2)


def test_no_column_with_a_keyword_is_left_out(tmp_path: Path) -> None:
    class Gap(FakeEncoder):
        def __call__(self, captions: Sequence[str]) -> TextFeatures:
            features = super().__call__(captions)
            return features._replace(mask=torch.tensor([True, False, True]).expand(len(captions), 3))

    rows = TextCache.open(Gap(), CAPTIONS, tmp_path, progress=False).rows(torch.arange(4))
    assert rows.mask.tolist() == [[True, False, True]] * 4


def test_a_second_opening_computes_nothing(tmp_path: Path) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    again = FakeEncoder()
    assert len(TextCache.open(again, CAPTIONS, tmp_path, progress=False)) == len(CAPTIONS) and again.calls == 0


def test_the_key_changes_with_all_that_decides_the_features() -> None:
    encoders = [FakeEncoder(), FakeEncoder(digest="e"), FakeEncoder(max_keywords=2), FakeEncoder(), FakeEncoder()]
    encoders[3].stop_words = frozenset()
    encoders[4].idf = {"caption": 2.0}
    keys = [cache_key(e, CAPTIONS) for e in encoders]
    keys += [cache_key(encoders[0], CAPTIONS[:-1]), cache_key(encoders[0], CAPTIONS[::-1])]
    keys += [cache_key(encoders[0], captions) for captions in (["a\0b", "c"], ["a", "b\0c"])]
    assert len(set(keys)) == len(keys)
    assert cache_key(FakeEncoder(), CAPTIONS) == keys[0]


@pytest.mark.parametrize("damage", ["short", "missing", "garbage"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    whole = files(tmp_path)
    victim = next(tmp_path.glob("*/keywords.npy"))
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1] if damage == "short" else b"no array")
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("name", ["sentence", "keywords", "mask", "digest"])
def test_a_flipped_bit_is_found_where_its_row_is_read(tmp_path: Path, name: str) -> None:
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    victim = next(tmp_path.glob(f"*/{name}.npy"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    encoder = FakeEncoder()
    cache = TextCache.open(encoder, CAPTIONS, tmp_path, progress=False)
    torch.testing.assert_close(cache.rows(torch.arange(1299)).sentence, encoder(CAPTIONS[:1299]).sentence)
    with pytest.raises(UserError, match=rf"{victim.parent} are damaged \(row 1299\): remove that folder"):
        cache.rows(torch.tensor([3, 1299]))


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="they stay in memory"):
        cache = TextCache.open(FakeEncoder(), CAPTIONS, tmp_path / "file", progress=False)
    ids = torch.arange(5)
    torch.testing.assert_close(cache.rows(ids).keywords, FakeEncoder()(CAPTIONS[:5]).keywords)


def test_a_full_disk_costs_a_warning_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the first chunk fits, the second does not
    try:
        with pytest.warns(UserWarning, match="they stay in memory"):
            cache = TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    torch.testing.assert_close(cache.rows(torch.tensor([1299])).keywords, FakeEncoder()(CAPTIONS[1299:]).keywords)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_whole_cache_is_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(f"cannot write {path}")

    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    monkeypatch.setattr("fastt2i.text.cache.FileLock", refuse)
    again = FakeEncoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(TextCache.open(again, CAPTIONS, tmp_path, progress=False)) == len(CAPTIONS) and again.calls == 0


class Interrupted(FakeEncoder):
    """Ends the process, so to speak, after some chunks."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.left = chunks

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(captions)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.integers(0, 2), cut=st.tuples(*[st.integers(0, 30_000)] * 4))
def test_an_interrupted_build_goes_on_whatever_the_disk_has_of_it(
    tmp_path: Path, chunks: int, cut: tuple[int, int, int, int]
) -> None:
    directory = tmp_path / "interrupted"
    shutil.rmtree(directory, ignore_errors=True)
    if not (tmp_path / "whole").exists():
        TextCache.open(FakeEncoder(), CAPTIONS, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        TextCache.open(Interrupted(chunks), CAPTIONS, directory, progress=False)
    for path, length in zip(sorted(directory.glob(".*/*.npy")), cut, strict=True):
        path.write_bytes(path.read_bytes()[: -length or None])
    TextCache.open(FakeEncoder(), CAPTIONS, directory, progress=False)
    assert files(directory) == files(tmp_path / "whole")


def test_half_precision_on_disk_and_mapped_not_read(tmp_path: Path) -> None:
    cache = TextCache.open(FakeEncoder(), CAPTIONS, tmp_path, progress=False)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    kinds = {path.stem: np.load(path).dtype for path in folder.iterdir()}
    assert kinds == {"sentence": np.float16, "keywords": np.float16, "mask": np.bool_, "digest": np.uint32}
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(folder / f"{name}.npy") in mapped for name in kinds)
    assert cache.rows(torch.arange(2)).keywords.dtype == torch.float32


def test_a_bar_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        TextCache.open(Interrupted(1), CAPTIONS, tmp_path)
    assert "text features" in capsys.readouterr().err
    TextCache.open(FakeEncoder(), CAPTIONS, tmp_path)
    assert "1300/1300" in capsys.readouterr().err
