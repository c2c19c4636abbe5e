"""What a migration must never do: lose a source to eviction, leave its folder, or list what a copy still needs."""

from __future__ import annotations

import os

import pytest
import torch

from cache_store import FeatureStore, StepKey, StoreFull
from cache_store.migration import migrate, moves_to_flat
from tests.cache_store.conftest import tensor

H, OTHER = "0123abcd", "89abcdef"


def run(store, folder, *, dry_run=False):
    return list(migrate(store, moves_to_flat(folder), recipe=None, dry_run=dry_run))


def old_tree(root, count, prompt_hash=H):
    (root / prompt_hash).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        torch.save(tensor(index), root / prompt_hash / f"episode_1_vlm{index}.pt")


def test_a_limit_stops_the_copies_and_evicts_no_source(open_store, tmp_path):
    root = tmp_path / "store"
    old_tree(root, 8)
    before = {path: path.read_bytes() for path in root.rglob("*.pt")}
    store = open_store(limit_bytes=sum(map(len, before.values())) * 3 // 2)
    with pytest.raises(StoreFull):
        run(store, root)
    assert {path: path.read_bytes() for path in before if path.exists()} == before


def test_copies_of_one_migration_are_not_evicted_by_its_later_ones(open_store, tmp_path):
    old_tree(tmp_path / "old", 8)
    size = sum(path.stat().st_size for path in (tmp_path / "old").rglob("*.pt"))
    store = open_store(limit_bytes=size // 2)
    with pytest.raises(StoreFull):
        run(store, tmp_path / "old")


def test_a_folder_that_is_a_link_is_not_followed(open_store, tmp_path):
    old_tree(tmp_path / "elsewhere", 1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / H).symlink_to(tmp_path / "elsewhere" / H)
    assert [moved for moved in run(open_store(), tmp_path / "old") if moved.outcome == "copied"] == []


def test_a_link_to_the_source_is_no_copy_of_it(tmp_path):
    root = tmp_path / "store"
    old_tree(root, 1)
    os.symlink(f"{H}/episode_1_vlm0.pt", root / "episode_1_vlm0.pt")
    with FeatureStore(root) as store:
        assert [moved.outcome for moved in run(store, root)] != ["there"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_two_prompts_of_one_step_conflict_and_neither_is_chosen(open_store, tmp_path, dry_run):
    for seed, prompt_hash in enumerate((H, OTHER)):
        (tmp_path / "old" / prompt_hash).mkdir(parents=True)
        torch.save(tensor(seed), tmp_path / "old" / prompt_hash / "episode_1_vlm0.pt")
    store = open_store()
    assert [moved.outcome for moved in run(store, tmp_path / "old", dry_run=dry_run)] == ["conflict", "conflict"]
    assert not store.contains(StepKey("episode_1", 0))
