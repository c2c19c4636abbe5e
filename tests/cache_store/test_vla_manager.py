"""The robot-training scripts' manager does what their users rely on."""

from __future__ import annotations

import pytest
import torch

from cache_store import FeatureStore, VLACacheManager, get_cache_manager, vla_manager
from tests.cache_store.conftest import tensor

GIB = 1 << 30


@pytest.fixture
def manager(tmp_path):
    manager = VLACacheManager(tmp_path / "cache")
    yield manager
    assert manager.store.verify().problems == []


def test_save_casts_a_bare_tensor_to_float16_and_plain_torch_load_reads_it(manager, tmp_path):
    features = torch.randn(1, 1, 16, requires_grad=True)
    manager.save_cache("episode", 30, features)
    path = tmp_path / "cache" / "episode_vlm30.pt"
    assert manager.get_cache_path("episode", 30) == path
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded, features.detach().half())
    assert torch.equal(manager.load_cache("episode", 30), loaded)


def test_a_dict_or_tuple_is_stored_as_given(manager):
    manager.save_cache("episode", 0, {"a": tensor(1).float(), "b": (tensor(2), None)})
    loaded = manager.load_cache("episode", 0)
    assert loaded["a"].dtype == torch.float32
    assert loaded["b"][1] is None


def test_save_skips_what_is_present_and_a_miss_is_none(manager):
    assert manager.load_cache("episode", 0) is None
    manager.save_cache("episode", 0, tensor(1))
    manager.save_cache("episode", 0, tensor(2))
    assert manager.cache_exists("episode", 0)
    assert not manager.cache_exists("episode", 0, prompt_hash="0a1b2c3d")
    assert torch.equal(manager.load_cache("episode", 0), tensor(1))


def test_load_moves_every_tensor_to_the_device(manager):
    manager.save_cache("episode", 0, {"a": tensor(1), "b": (tensor(2),)})
    loaded = manager.load_cache("episode", 0, device="meta")
    assert loaded["a"].is_meta
    assert loaded["b"][0].is_meta


def test_stats_are_in_gib(manager):
    manager.save_cache("episode", 0, tensor(1))
    size = manager.get_cache_path("episode", 0).stat().st_size
    assert manager.get_cache_stats() == {
        "cache_dir": str(manager.cache_dir),
        "total_files": 1,
        "total_size_gb": size / GIB,
        "limit_gb": 50.0,
        "usage_percent": 100 * size / (50 * GIB),
    }


def test_no_limit_has_no_usage_percent(tmp_path):
    manager = VLACacheManager(tmp_path, cache_limit_gb=0)
    assert manager.store.limit_bytes is None
    assert manager.get_cache_stats()["usage_percent"] == 0.0


def test_datasets_are_listed_with_sorted_indices_and_nested_under_hashes(manager):
    for index in (20, 3, 100):
        manager.save_cache("b", index, tensor(1))
    manager.save_cache("a", 0, tensor(1))
    manager.save_cache("a", 7, tensor(1), prompt_hash="0a1b2c3d")
    manager.save_cache("a", 5, tensor(1), prompt_hash="0a1b2c3d")
    assert manager.list_cached_datasets() == {"a": [0], "b": [3, 20, 100], "0a1b2c3d": {"a": [5, 7]}}


def test_clear_without_confirmation_deletes_nothing_and_says_so(manager, capsys):
    manager.save_cache("episode", 0, tensor(1))
    assert manager.clear_cache() == 0
    assert "Nothing was deleted" in capsys.readouterr().out
    assert manager.cache_exists("episode", 0)
    assert manager.clear_cache(confirm=True) == 1
    assert not manager.cache_exists("episode", 0)


def test_the_limit_evicts_the_least_recently_used_and_never_what_was_just_saved(tmp_path):
    manager = VLACacheManager(tmp_path, cache_limit_gb=0)
    manager.save_cache("episode", 0, tensor(0))
    size = manager.get_cache_path("episode", 0).stat().st_size
    manager.set_limit_gb(2 * size / GIB)
    for index in (1, 2, 3):
        manager.save_cache("episode", index, tensor(index))
        assert manager.cache_exists("episode", index)
    assert manager.list_cached_datasets() == {"episode": [2, 3]}


def test_one_manager_per_folder_whose_limit_a_repeated_call_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(vla_manager, "_managers", {})
    monkeypatch.chdir(tmp_path)
    first = get_cache_manager(tmp_path / "vlm_cache")
    assert get_cache_manager() is first
    assert get_cache_manager(tmp_path / "x" / ".." / "vlm_cache", 7.0) is first
    assert (first.cache_limit_gb, first.store.limit_bytes) == (7.0, 7 * GIB)
    monkeypatch.setenv("VLM_CACHE_DIR", str(tmp_path / "other"))
    assert get_cache_manager().cache_dir == tmp_path / "other"


def test_the_default_limit_does_not_replace_one_that_the_store_remembers(tmp_path):
    FeatureStore(tmp_path, limit_bytes=200 * GIB).close()
    assert VLACacheManager(tmp_path).store.limit_bytes == 50 * GIB
    assert FeatureStore(tmp_path).limit_bytes == 200 * GIB
    VLACacheManager(tmp_path, 60.0)
    assert FeatureStore(tmp_path).limit_bytes == 60 * GIB
