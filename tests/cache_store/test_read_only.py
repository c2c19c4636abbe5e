"""A store that is only asked answers as the writing one does, foretells eviction, and leaves no trace."""

from __future__ import annotations

import os

import pytest
import torch

from cache_store import Evicted, FeatureStore, PutItem, ReadOnlyStore, StepKey, StoreFormatError, VideoKey, bulk
from cache_store.bulk import KnownRecipes, in_batches
from tests.cache_store.conftest import tensor

RECIPE, OTHER = {"weights": "original"}, {"weights": "fine-tuned"}
WIDE = 4096  # a feature of 8 KiB, and its file's head


def key(index, dataset="episode"):
    return StepKey(dataset, index)


def video(index):
    return VideoKey("clips", f"v{index}", 8, "0" * 8)


def large(seed):
    return {"vision_features": torch.full((600, 1024), float(seed), dtype=torch.float16)}


def everything(root):
    """Each path below a folder with what a change of it would change."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.stat()
        found[path] = (status.st_ino, status.st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
    return found


@pytest.fixture
def filled(open_store):
    """A closed store: two data sets of steps, the first not used since, and two videos of one recipe."""
    store = open_store()
    for dataset in ("old", "new"):
        for index in range(5):
            store.put(key(index, dataset), tensor(index, width=WIDE), recipe=RECIPE)
    for index in range(2):
        store.put(video(index), tensor(index), recipe=RECIPE)
    store.pin(["clips"])
    store.close()
    return store


ASKED = [
    (key(0, "old"), RECIPE),
    (key(0, "old"), OTHER),
    (key(0, "old"), None),
    (key(9, "old"), RECIPE),
    (video(0), RECIPE),
    (video(0), OTHER),
    (video(9), RECIPE),
    (key(4, "new"), RECIPE),
]


def test_it_answers_as_the_store_and_leaves_no_trace(filled):
    before = everything(filled.root)
    looked = ReadOnlyStore(filled.root)
    told = list(looked.states(ASKED))
    assert told == ["present", "stale", "present", "missing", "present", "stale", "missing", "present"]
    assert told == [looked.state_of(key, recipe=recipe) for key, recipe in ASKED]
    assert list(looked.entries())
    answers = [looked.pinned_bytes(), looked.path_of(video(0), recipe=OTHER), [pin.datasets for pin in looked.pins()]]
    assert "weights" in str(looked.mismatch_of(key(0, "old"), recipe=OTHER))
    assert looked.mismatch_of(key(0, "old"), recipe=RECIPE) is looked.mismatch_of(key(9), recipe=RECIPE) is None
    looked.set_limit(1)
    assert looked.eviction_for(1, new_features=1).entries == 10
    assert everything(filled.root) == before
    assert told == list(filled.states(ASKED))
    assert filled.limit_bytes is None
    assert answers == [filled.pinned_bytes(), filled.path_of(video(0), recipe=OTHER), [["clips"]]]


def test_a_missing_folder_is_an_empty_store_and_stays_missing(tmp_path):
    looked = ReadOnlyStore(tmp_path / "later")
    assert list(looked.states(ASKED)) == ["missing"] * len(ASKED)
    assert (looked.limit_bytes, looked.pinned_bytes(), list(looked.entries())) == (None, 0, [])
    assert looked.eviction_for(1, new_features=1).entries == 0
    assert not (tmp_path / "later").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreFormatError):
        ReadOnlyStore(tmp_path / "file")


def test_files_that_no_journal_knows_are_seen_without_writing_them_down(tmp_path):
    torch.save(tensor(0), tmp_path / "episode_vlm0.pt")
    assert list(ReadOnlyStore(tmp_path).states([(key(0), RECIPE)])) == ["present"]
    assert os.listdir(tmp_path) == ["episode_vlm0.pt"]


def test_limits_are_assumed_for_the_answers_alone(filled):
    looked = ReadOnlyStore(filled.root)
    looked.set_limit(10**9, soft_limit_bytes=10**8)
    assert (looked.limit_bytes, looked.soft_limit_bytes) == (10**9, 10**8)
    with pytest.raises(ValueError, match="remember"):
        looked.set_limit(5, remember=True)
    assert ReadOnlyStore(filled.root).limit_bytes is None


def sizes(store):
    return {entry.name: entry.bytes for entry in store.entries()}


def test_what_was_used_least_recently_would_go_first_and_pins_stay(filled):
    looked = ReadOnlyStore(filled.root)
    one = sizes(looked)["old_vlm0.pt"]
    total = sum(sizes(looked).values())
    looked.set_limit(total)
    assert looked.eviction_for(0, new_features=0).entries == 0
    found = looked.eviction_for(one + 1, new_features=1)
    assert found.datasets == {"old": Evicted(2, 2 * one)}
    assert (found.entries, found.bytes, found.missing_bytes) == (2, 2 * one, 0)
    found = looked.eviction_for(7 * one, new_features=7)
    assert found.datasets == {"old": Evicted(5, 5 * one), "new": Evicted(2, 2 * one)}
    assert looked.eviction_for(total, new_features=1).missing_bytes == total - 10 * one  # the pinned videos


def test_a_soft_limit_is_where_it_begins_and_the_hard_one_what_must_be_kept(filled):
    looked = ReadOnlyStore(filled.root)
    total, one = sum(sizes(looked).values()), sizes(looked)["old_vlm0.pt"]
    looked.set_limit(total, soft_limit_bytes=total - one)
    found = looked.eviction_for(one, new_features=1)
    assert (found.entries, found.missing_bytes) == (2, 0)


def test_a_builds_own_features_stay_and_what_it_overwrites_needs_no_room(filled):
    looked = ReadOnlyStore(filled.root)
    one = sizes(looked)["old_vlm0.pt"]
    looked.set_limit(sum(sizes(looked).values()))
    own = [(key(index, "old"), RECIPE) for index in range(5)]
    assert looked.eviction_for(one, new_features=1, keeping=own).datasets == {"new": Evicted(1, one)}
    found = looked.eviction_for(5 * one, new_features=5, keeping=own, is_replacing=True)
    assert (found.entries, found.replaced_bytes) == (0, 5 * one)


def test_a_running_builds_features_stay(filled):
    with FeatureStore(filled.root, run_id="run") as running:
        running.put(key(9, "running"), tensor(9, width=WIDE))
        running.protect([key(0, "old")])
        looked = ReadOnlyStore(filled.root)
        looked.set_limit(1)
        found = looked.eviction_for(1, new_features=1)
        assert {name: evicted.entries for name, evicted in found.datasets.items()} == {"old": 4, "new": 5}
    assert ReadOnlyStore(filled.root).eviction_for(1, new_features=1).entries == 0  # no limit is remembered


@pytest.mark.parametrize("are_small", [True, False])
def test_it_foretells_what_the_evictor_then_does(open_store, are_small):
    """A flood of either kind takes from its own pool; the evictor goes a little further, for the next writers."""
    store = open_store()
    store.put(video(0), large(0))
    store.put_many([PutItem(key(index), tensor(index, width=WIDE)) for index in range(200)])
    store.close()
    store.set_limit(sum(sizes(store).values()))
    growth = [(key(index, "later"), tensor(index, width=WIDE)) for index in range(30)]
    if not are_small:
        growth = [(video(index), large(index)) for index in range(1, 3)]
    foretold = ReadOnlyStore(store.root).eviction_for(
        30 * 9_900 if are_small else 2 * 1_230_500, new_features=len(growth)
    )
    before = set(sizes(store))
    with open_store(run_id="build") as build:
        for new_key, value in growth:
            build.put(new_key, value)
    gone = before - set(sizes(store))
    assert foretold.entries > 0
    assert foretold.missing_bytes == 0
    assert foretold.entries <= len(gone) <= foretold.entries + 30
    assert ("clips" in foretold.datasets) == any(name.startswith("clips/") for name in gone)


def test_names_that_share_a_hash_value_are_told_apart(filled, monkeypatch):
    monkeypatch.setattr(bulk, "_hashes", lambda names: bulk.np.full(len(names), 7))
    monkeypatch.setattr(bulk, "hash", lambda name: 7, raising=False)
    with filled._viewed() as view:
        known = KnownRecipes(view.table)
    (batch,) = in_batches([(key(index, name), RECIPE) for name in ("old", "new", "none") for index in range(5)])
    assert known.states(batch) == ["present"] * 10 + ["missing"] * 5
