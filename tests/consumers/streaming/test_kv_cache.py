"""Snapshots copy nothing, stay valid, and refuse what they cannot hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, Qwen2_5_VLConfig, StaticCache

from consumers.streaming.errors import NoSnapshot, UnsupportedCache
from consumers.streaming.kv_cache import KVCacheManager
from pipeline.encoders import small_models


def filled(tokens: int, *, seed: int = 0) -> DynamicCache:
    cache = DynamicCache()
    append(cache, tokens, seed=seed)
    return cache


def append(cache: DynamicCache, tokens: int, *, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in range(3):
        cache.update(*(torch.randn(1, 2, tokens, 4, generator=generator) for _ in range(2)), layer)


def bits(manager: KVCacheManager) -> list[torch.Tensor]:
    return [tensor.clone() for pair in manager.tensors() for tensor in pair]


def assert_same(manager: KVCacheManager, before: list[torch.Tensor]) -> None:
    now = [tensor for pair in manager.tensors() for tensor in pair]
    assert len(now) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(now, before, strict=True))


def test_an_empty_manager_holds_nothing():
    manager = KVCacheManager()
    assert (manager.get_seq_length(), manager.nbytes, manager.tensors()) == (0, 0, [])


def test_bytes_are_those_of_every_key_and_value():
    assert KVCacheManager(filled(5)).nbytes == 3 * 2 * (1 * 2 * 5 * 4) * 4


def test_a_snapshot_shares_the_tensors_and_survives_what_is_appended():
    manager = KVCacheManager(filled(5))
    manager.next_position, manager.tokens_seen = 9, 5
    before, places = bits(manager), [keys.data_ptr() for keys, _ in manager.tensors()]
    manager.snapshot()
    append(manager.cache, 3)
    manager.next_position = 12
    for _ in range(2):  # the snapshot stays
        manager.restore()
        assert_same(manager, before)
        assert [keys.data_ptr() for keys, _ in manager.tensors()] == places
        assert (manager.next_position, manager.tokens_seen) == (9, 5)
        append(manager.cache, 2)


def test_a_snapshot_of_nothing_is_nothing():
    manager = KVCacheManager()
    manager.snapshot()
    manager.cache = filled(2)
    manager.restore()
    assert manager.cache is None


def test_restoring_gives_the_model_its_rope_deltas_back():
    manager, model = KVCacheManager(filled(2)), SimpleNamespace(model=SimpleNamespace(rope_deltas=torch.tensor([[-3]])))
    manager.snapshot(model)
    model.model.rope_deltas = torch.tensor([[8]])
    manager.restore(model)
    assert model.model.rope_deltas.tolist() == [[-3]]


def test_there_is_no_restoring_without_a_snapshot():
    manager = KVCacheManager(filled(2))
    with pytest.raises(NoSnapshot, match="snapshot"):
        manager.restore()
    manager.snapshot()
    manager.discard_snapshot()
    with pytest.raises(NoSnapshot):
        manager.restore()


def test_branches_go_their_own_ways():
    manager = KVCacheManager(filled(5))
    before = bits(manager)
    one, other = manager.branch(), manager.branch()
    append(one.cache, 2, seed=5)
    append(other.cache, 4, seed=6)
    assert (one.get_seq_length(), other.get_seq_length(), manager.get_seq_length()) == (7, 9, 5)
    assert_same(manager, before)


def test_detached_tensors_have_no_graph_and_share_their_memory():
    cache = DynamicCache()
    cache.update(*(torch.randn(1, 2, 5, 4, requires_grad=True) * 2 for _ in range(2)), 0)
    detached = KVCacheManager().detach(cache)
    assert cache.layers[0].keys.requires_grad
    assert not detached.layers[0].keys.requires_grad
    assert detached.layers[0].keys.data_ptr() == cache.layers[0].keys.data_ptr()


def test_the_mask_covers_what_is_cached_and_what_is_new():
    manager, new = KVCacheManager(filled(3)), torch.tensor([[1, 0]])
    assert manager.build_full_attention_mask(new).tolist() == [[1, 1, 1, 1, 0]]
    assert manager.build_full_attention_mask(new, filled(1)).tolist() == [[1, 1, 0]]
    assert KVCacheManager().build_full_attention_mask(new).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="batch of 2"):
        manager.build_full_attention_mask(torch.ones(2, 1))
    with pytest.raises(ValueError, match="expected"):
        manager.build_full_attention_mask(torch.ones(2))


def test_kept_spans_are_bitwise_those_tokens_and_free_the_rest():
    manager = KVCacheManager(filled(10))
    before = manager.tensors()
    manager.keep_tokens([(0, 2), (6, 10)])
    for (keys, values), (old_keys, old_values) in zip(manager.tensors(), before, strict=True):
        kept = [0, 1, 6, 7, 8, 9]
        assert torch.equal(keys, old_keys[:, :, kept])
        assert torch.equal(values, old_values[:, :, kept])
        assert keys.untyped_storage().nbytes() == keys.nbytes


def test_an_append_that_failed_half_way_is_undone():
    manager = KVCacheManager(filled(5))
    before = bits(manager)
    manager.cache.update(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), 0)  # of three layers, one
    untouched = manager.cache.layers[1].keys
    manager.cut_back(5)
    assert_same(manager, before)
    assert manager.cache.layers[1].keys is untouched
    assert all(part.untyped_storage().nbytes() == part.nbytes for pair in manager.tensors() for part in pair)


def test_an_append_is_undone_without_memory_for_a_copy(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("simulated")

    manager = KVCacheManager(filled(5))
    before = bits(manager)
    append(manager.cache, 3)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "clone", fails)
        manager.cut_back(5)
    assert_same(manager, before)


def test_clearing_forgets_everything():
    manager = KVCacheManager(filled(5))
    manager.snapshot()
    manager.next_position = manager.tokens_seen = 5
    manager.clear()
    assert (manager.get_seq_length(), manager.next_position, manager.tokens_seen) == (0, 0, 0)
    with pytest.raises(NoSnapshot):
        manager.restore()


@pytest.mark.parametrize("cache", [None, (1, 2), "static"])
def test_other_caches_are_refused_instead_of_counted_as_zero(cache):
    if cache == "static":
        cache = StaticCache(config=Qwen2_5_VLConfig(**small_models.QWEN), max_cache_len=8)
    with pytest.raises(UnsupportedCache, match="DynamicCache"):
        KVCacheManager().clone(cache)
    if cache is not None:
        with pytest.raises(UnsupportedCache):
            KVCacheManager(cache)
