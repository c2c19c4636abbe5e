"""Eviction: soft and hard limits, pools, pins, leases, warnings, and books that keep telling the truth."""

from __future__ import annotations

import multiprocessing
import os
import shutil

import pytest
import torch

from cache_store import (
    EntryExists,
    PutItem,
    StepKey,
    StoreFull,
    VideoKey,
    budget,
    entry_table,
    evictor,
    naming,
    removing,
)
from cache_store import store as store_module
from cache_store.atomic import publish_many
from cache_store.ledger import Ledger
from tests.cache_store.conftest import published_bytes, remove_snapshots, tensor

SMALL = 1650  # bytes of a step's file


def key(index, dataset="episode"):
    return StepKey(dataset, index)


def video(index, dataset="videos"):
    return VideoKey(dataset, f"v{index}", 8, "0" * 8)


def large(seed):
    return {"vision_features": torch.full((600, 1024), float(seed), dtype=torch.float16)}


def bring_into_snapshot(store):
    remove_snapshots(store.root)
    store.stats()


def kept(store):
    return sorted(found.vlm_idx for found in store.keys() if isinstance(found, StepKey))


def test_above_the_soft_limit_eviction_begins_and_the_hard_limit_is_never_reached(open_store):
    store = open_store(limit_bytes=20 * SMALL, soft_limit_bytes=10 * SMALL)
    highest = 0
    for index in range(40):
        store.put(key(index), tensor(index))
        highest = max(highest, published_bytes(store.root))
    assert 9 * SMALL <= highest <= 12 * SMALL
    again = open_store()
    assert (again.limit_bytes, again.soft_limit_bytes) == (20 * SMALL, 10 * SMALL)
    again.set_limit(soft_limit_bytes=0)
    assert open_store().soft_limit_bytes is None


def test_above_the_soft_limit_a_writer_does_not_wait_for_another_evictor(open_store, monkeypatch):
    store = open_store(limit_bytes=20 * SMALL, soft_limit_bytes=2 * SMALL)
    waits = []
    real = budget.lease

    def held_by_another(path, *, timeout_s):
        waits.append(timeout_s)
        return real(path.with_name("another.lock"), timeout_s=timeout_s) if False else _never()

    monkeypatch.setattr(budget, "lease", held_by_another)
    for index in range(10):
        store.put(key(index), tensor(index))
    assert set(waits) == {0.0}
    assert len(kept(store)) == 10


def _never():
    import contextlib

    return contextlib.nullcontext(False)


def test_a_soft_limit_above_the_limit_is_refused(open_store):
    with pytest.raises(ValueError, match="soft limit"):
        open_store(limit_bytes=100, soft_limit_bytes=200)


def test_a_soft_limit_without_a_limit_is_refused(open_store):
    with pytest.raises(ValueError, match="needs a limit, and there is none"):
        open_store(soft_limit_bytes=200)


def test_a_flood_of_small_entries_leaves_the_large_ones_their_half_and_the_other_way_round(open_store):
    size = 1_230_000
    store = open_store(limit_bytes=8 * size)
    for index in range(3):
        store.put(video(index), large(index))
    first_small = tensor(1, width=100_000)
    for index in range(60):
        store.put(key(index), first_small)
    assert sum(store.contains(video(index)) for index in range(3)) == 3
    for index in range(3, 20):
        store.put(video(index), large(index))
    by_kind = store.stats().datasets
    assert by_kind["episode"].bytes > 3 * size
    assert by_kind["videos"].bytes > 2 * size


def test_pinned_data_sets_stay_and_go_when_the_pin_ends(open_store):
    store = open_store(limit_bytes=6 * SMALL)
    for index in range(3):
        store.put(key(index, "pinned"), tensor(index))
    pin = store.pin(["pin*"], for_s=3600, note="for the paper")
    for index in range(20):
        store.put(key(index), tensor(index))
    assert store.stats().datasets["pinned"].entries == 3
    assert [found.note for found in store.stats().pins] == ["for the paper"]
    assert store.unpin(pin.id) == 1
    for index in range(20, 40):
        store.put(key(index), tensor(index))
    assert "pinned" not in {name for name, found in store.stats().datasets.items() if found.entries}


def test_a_store_full_of_pinned_entries_refuses_at_once_and_says_so(open_store, monkeypatch):
    monkeypatch.setattr(budget.time, "sleep", lambda _: pytest.fail("waited for room that nobody holds"))
    store = open_store(limit_bytes=2 * SMALL)
    store.put(key(0), tensor(0))
    store.put(key(1), tensor(1))
    store.pin(["episode"])
    with pytest.raises(StoreFull, match="pinned"):
        store.put(key(0, "other"), tensor(2))
    assert kept(store) == [0, 1]


def _hold(root, is_held, may_end):
    from cache_store import FeatureStore

    with FeatureStore(root).reading(keys=[key(0), key(1)]):
        is_held.set()
        may_end.wait(60)


def test_what_another_process_reads_under_a_lease_stays_until_it_ends(open_store):
    store = open_store(limit_bytes=4 * SMALL)
    for index in range(4):
        store.put(key(index), tensor(index))
    context = multiprocessing.get_context("fork")
    is_held, may_end = context.Event(), context.Event()
    reader = context.Process(target=_hold, args=(store.root, is_held, may_end))
    reader.start()
    assert is_held.wait(60)
    for index in range(4, 12):
        store.put(key(index), tensor(index))
    assert kept(store)[:2] == [0, 1]
    reader.kill()
    reader.join()
    for index in range(12, 20):
        store.put(key(index), tensor(index))
    assert kept(store)[0] > 11


def test_what_a_run_protects_after_the_snapshot_stays(open_store):
    with open_store(limit_bytes=4 * SMALL, run_id="over") as finished:
        for index in range(4):
            finished.put(key(index), tensor(index))
        bring_into_snapshot(finished)
    run = open_store(run_id="active")
    run.protect([key(0)])
    store = open_store()
    for index in range(4, 12):
        store.put(key(index), tensor(index))
    assert kept(store)[0] == 0
    assert 1 not in kept(store)


@pytest.mark.parametrize("lies", ["under an alias", "without a record in another recipe's folder"])
def test_a_run_protects_a_video_where_it_is_found(open_store, lies):
    dataset = "Video-MME_128frame" if lies == "under an alias" else "Video-MME"
    filling, recipe = {"vision_features": tensor(1)}, {"wanted": True}
    with open_store(limit_bytes=20_000) as old:
        if lies != "under an alias":
            old.put(video(1, dataset), filling, recipe={"wanted": False})
        old.put(video(0, dataset), filling, recipe=recipe if lies == "under an alias" else None)
        bring_into_snapshot(old)
    run = open_store(run_id="active")
    found = video(0, "Video-MME")
    assert run.state_of(found, recipe=recipe) == "present"
    run.protect([found], recipe=recipe)
    store = open_store()
    for index in range(40):
        store.put(key(index), tensor(index))
    assert run.state_of(found, recipe=recipe) == "present"
    assert not store.contains(key(0))


def test_what_was_read_since_the_snapshot_goes_last(open_store):
    store = open_store(limit_bytes=4 * SMALL)
    for index in range(4):
        store.put(key(index), tensor(index))
    bring_into_snapshot(store)
    with open_store() as reader:
        reader.get(key(0))
    store.put(key(4), tensor(4))
    assert kept(store) == [0, 2, 3, 4]


def _ask_for_room_and_die(store):
    store.set_limit(100 * SMALL, remember=False)
    store.put(key(50), tensor(0))
    store._books.budget.claim([budget.Growth("episode_vlm51.pt", 2 * SMALL)])
    os._exit(9)


def test_room_of_a_killed_writer_leaves_the_sums_of_all(open_store, monkeypatch):
    store = open_store(limit_bytes=6 * SMALL)
    for index in range(3):
        store.put(key(index), tensor(index))
    bring_into_snapshot(store)
    dying = multiprocessing.get_context("fork").Process(target=_ask_for_room_and_die, args=(store,))
    dying.start()
    dying.join()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "fold", lambda *_: pytest.fail("the whole store was read for one dead writer"))
        store.put(key(3), tensor(3))
    assert kept(store) == [0, 1, 2, 3, 50]
    view = Ledger(store.root)
    view.refresh()
    assert view.total_bytes == published_bytes(store.root)


def test_room_is_granted_ahead_but_never_at_the_cost_of_an_entry(open_store):
    store = open_store(limit_bytes=1 << 30)
    size = store.put(key(0), tensor(0, width=1_500_000)).stat().st_size
    store.set_limit(size + SMALL)
    store.put(key(1), tensor(1))
    assert kept(store) == [0, 1]


def test_a_writer_whose_journal_was_taken_away_asks_for_room_anew(open_store):
    limit = 40_000_000  # of which 39 kB are granted ahead
    store = open_store(limit_bytes=limit)
    for index in range(60):
        store.put(key(index), tensor(index))
        if index % 10 == 5:
            for path in (store.root / ".vlm-cache" / "journals.2").iterdir():
                path.unlink()
        view = Ledger(store.root)
        view.read()
        own = [tail for tail in view.changes.tails.values() if not tail.is_closed]
        assert all(tail.granted >= 0 for tail in own)


def test_eviction_reads_the_front_of_the_snapshot_only(open_store, monkeypatch):
    store = open_store()
    store.put_many([PutItem(key(index), tensor(index, width=8)) for index in range(3000)])
    size = store.stats().bytes
    store.set_limit(size)
    read = []
    real = entry_table.rows_of_parquet
    monkeypatch.setattr(entry_table, "_BATCH_ROWS", 100)

    def counted(content):
        for batch in real(content):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(entry_table, "rows_of_parquet", counted)
    monkeypatch.setattr(entry_table, "from_parquet", lambda _: pytest.fail("the whole table was read"))
    store.put(key(5000), tensor(0, width=8))
    monkeypatch.undo()
    assert sum(read) == 100
    assert 0 < store.stats().evictions < 100


def test_entries_written_after_the_snapshot_are_evicted_too_in_their_order(open_store):
    store = open_store(limit_bytes=5 * SMALL)
    for index in range(30):
        store.put(key(index), tensor(index))
        if index % 7 == 0:
            store.get(key(index))
    assert kept(store)[-1] == 29
    assert 4 <= len(kept(store)) <= 5


def test_heavy_churn_is_warned_about_and_counted(open_store, monkeypatch, caplog):
    monkeypatch.setattr(evictor, "_WARN_FROM", 5)
    store = open_store(limit_bytes=3 * SMALL)
    for index in range(30):
        store.put(key(index), tensor(index))
    assert "never been read" in caplog.text
    assert caplog.text.count("never been read") < 5
    assert store.stats().evicted_unread > 20


def test_evictions_of_entries_that_were_read_are_no_churn(open_store, monkeypatch, caplog):
    monkeypatch.setattr(evictor, "_WARN_FROM", 5)
    store = open_store(limit_bytes=3 * SMALL)
    for index in range(30):
        store.put(key(index), tensor(index))
        store.get(key(index))
    assert "never been read" not in caplog.text


def test_put_many_keeps_the_limit_and_announces_all_its_files(open_store):
    store = open_store(limit_bytes=10 * SMALL)
    for start in range(0, 40, 4):
        paths = store.put_many([PutItem(key(index), tensor(index), {"a": 1}) for index in range(start, start + 4)])
        assert [path.name for path in paths] == [f"episode_vlm{index}.pt" for index in range(start, start + 4)]
        assert published_bytes(store.root) <= 10 * SMALL
    assert torch.equal(store.get(key(39), recipe={"a": 1}), tensor(39))
    with pytest.raises(StoreFull):
        store.put_many([PutItem(key(index, "more"), tensor(index)) for index in range(11)])
    assert kept(store)[-1] == 39


def test_put_many_takes_the_last_of_equal_keys(store):
    assert len(store.put_many([PutItem(key(0), tensor(1)), PutItem(key(0), tensor(2))])) == 1
    assert torch.equal(store.get(key(0)), tensor(2))


def test_a_batch_that_fails_in_the_middle_leaves_the_rest_as_it_was(open_store, monkeypatch):
    store = open_store(limit_bytes=100 * SMALL)
    store.put(key(2), tensor(9))
    real, renamed = os.replace, []

    def fail_at_third(source, target):
        renamed.append(target)
        if len(renamed) == 3:
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("cache_store.atomic.os.replace", fail_at_third)
        with pytest.raises(store_module.StoreWriteError):
            store.put_many([PutItem(key(index), tensor(index)) for index in range(5)])
    assert kept(store) == [0, 1, 2]
    assert torch.equal(store.get(key(2)), tensor(9))
    assert not [path for path in store.root.iterdir() if path.name.startswith(naming.TEMP_PREFIX)]
    view = Ledger(store.root)
    view.read()
    assert view.changes.being_written == set()


def test_without_syncfs_each_file_of_a_batch_is_flushed(tmp_path, monkeypatch):
    from cache_store import atomic

    flushed = []
    monkeypatch.setattr(atomic, "_libc_syncfs", None)
    monkeypatch.setattr(atomic.os, "fsync", flushed.append)
    publish_many([([b"x"], f"{tmp_path}/{n}") for n in range(10)], published=lambda _: None)
    assert len(flushed) == 11  # ten files and their folder
    assert len(list(tmp_path.iterdir())) == 10


def test_an_entry_that_this_user_may_not_unlink_is_passed_over(open_store, monkeypatch, caplog):
    store = open_store(limit_bytes=3 * SMALL)
    for index in range(3):
        store.put(key(index), tensor(index))
    real = os.unlink

    def guarded(path, **options):
        if str(path).endswith("_vlm0.pt"):
            raise PermissionError(1, "Operation not permitted")
        real(path, **options)

    monkeypatch.setattr(removing.os, "unlink", guarded)
    store.put(key(3), tensor(3))
    monkeypatch.undo()
    assert kept(store) == [0, 2, 3]
    assert "may not be evicted" in caplog.text


def test_create_only_never_replaces(store):
    store.put(key(0), tensor(1), create_only=True)
    with pytest.raises(EntryExists) as caught:
        store.put(key(0), tensor(2), create_only=True)
    assert isinstance(caught.value, FileExistsError)
    assert torch.equal(store.get(key(0)), tensor(1))
    assert [path.name for path in store.root.iterdir() if path.suffix == ".pt"] == ["episode_vlm0.pt"]
    assert not [path for path in store.root.iterdir() if path.name.startswith(naming.TEMP_PREFIX)]


def test_the_states_of_many_are_those_of_each(store, tmp_path):
    recipe, other = {"a": 1}, {"a": 2}
    store.put(key(0), tensor(0), recipe=recipe)
    store.put(key(1), tensor(1))
    store.put(key(2), tensor(2), recipe=other)
    store.put(video(0), large(0), recipe=recipe)
    torch.save(tensor(4), store.root / "episode_vlm4.pt")
    keys = [key(index) for index in range(6)] + [video(0), video(1)]
    for wanted in (None, recipe, other):
        expected = [store.state_of(one, recipe=wanted) for one in keys]
        assert list(store.states((one, wanted) for one in keys)) == expected
    shutil.rmtree(store.root / ".vlm-cache")
    for wanted in (None, recipe, other):
        expected = [store.state_of(one, recipe=wanted) for one in keys]
        assert list(store.states((one, wanted) for one in keys)) == expected
    assert {entry.name: entry.recipe_fingerprint8 for entry in store.entries()}["episode_vlm0.pt"] is not None


def test_coverage_counts_what_the_last_plan_wanted(store):
    wanted = [(key(index), None) for index in (0, 3, 6)] + [(video(0), {"a": 1})]
    store.remember_plan("a build", wanted)
    for index in range(5):
        store.put(key(index), tensor(index))
    found = store.stats().datasets
    assert (found["episode"].planned, found["episode"].planned_present) == (3, 2)
    assert (found["videos"].planned, found["videos"].planned_present, found["videos"].entries) == (1, 0, 0)
    store.remember_plan("a build", wanted[:1])
    assert store.stats().datasets["episode"].planned == 1


def test_stats_tell_models_apart_within_a_data_set(store):
    recipes = [{"encoder": {"family": "longva", "dtype": "float16", "weights_sha256": letter * 64}} for letter in "ab"]
    for index, recipe in enumerate(recipes):
        store.put(key(index), tensor(index), recipe=recipe)
    store.put(key(2), tensor(2), recipe=recipes[1])
    store.put(key(3), tensor(3))
    models = store.stats().datasets["episode"].models
    assert {(model.model, model.entries) for model in models} == {
        ("longva float16 weights aaaaaaaa", 1),
        ("longva float16 weights bbbbbbbb", 2),
        (None, 1),
    }


def test_stats_tell_apart_how_many_frames_a_model_was_asked_for(store):
    for nframe in (4, 8):
        recipe = {"encoder": {"family": "longva"}, "nframe": nframe}
        store.put(VideoKey("Video-MME", "a", nframe, "61e3f5cb"), tensor(nframe), recipe=recipe)
    models = store.stats().datasets["Video-MME"].models
    assert {model.model for model in models} == {f"longva 61e3f5cb nframe {nframe}" for nframe in (4, 8)}


def test_hits_misses_and_evictions_are_counted_by_data_set(open_store):
    store = open_store(limit_bytes=3 * SMALL)
    for index in range(5):
        store.put(key(index, f"e{index % 2}"), tensor(index))
    store.get(key(4, "e0"))
    store.get(key(3, "e1"))
    store.get(key(99, "e1"))
    store.get(video(0))
    found = store.stats().datasets
    assert (found["e0"].hits, found["e1"].hits, found["e1"].misses, found["videos"].misses) == (1, 1, 1, 1)
    assert found["e0"].evictions + found["e1"].evictions == store.stats().evictions > 0
