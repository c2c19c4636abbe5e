"""Packed features are the loose ones by other means: the same bits, the same bytes back, whoever comes in between."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cache_store import (
    EntryExists,
    FeatureStore,
    PutItem,
    ReadOnlyStore,
    StepKey,
    VideoKey,
    atomic,
    evictor,
    packing,
    recipe_fingerprint,
    removing,
    rewriting,
    scan,
    shards,
    taking,
)
from cache_store.errors import StoreFormatError, StoreFull, StoreWriteError
from cache_store.ledger import Ledger
from cache_store.migration import migrate
from cache_store.shard_file import Shard
from tests.cache_store.conftest import tensor

RECIPE = {"weights": "a"}
STEPS = [StepKey(f"e{number % 3}", number) for number in range(30)]
VIDEO = VideoKey("Video-MME", "v", 8, "0" * 8)


class Killed(BaseException):
    """Ends a process where a kill would."""


def filled(root):
    store = FeatureStore(root)
    for number, key in enumerate(STEPS):
        store.put(key, tensor(number), recipe=RECIPE)
    return store


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pt")}


def all_read(store, but=()):
    return [
        key
        for number, key in enumerate(STEPS)
        if key not in but and not torch.equal(store.get(key, recipe=RECIPE), tensor(number))
    ] == []


def check(store):
    """Nothing is damaged, and the sums of the journals, without any listing, are the bytes that lie there."""
    assert store.verify(workers=1).problems == []
    view = Ledger(store.root)
    view.refresh()
    told_bytes = view.total_bytes
    store.stats()
    view.refresh()
    lie_there = [path for pattern in ("*.pt", "*/*.pt", "packed/*.arrow") for path in store.root.glob(pattern)]
    assert told_bytes == view.total_bytes == sum(path.stat().st_size for path in lie_there)


@pytest.fixture
def store(tmp_path):
    store = filled(tmp_path / "store")
    yield store
    store.close()
    check(store)


def test_a_shard_is_an_arrow_file_whose_contents_are_the_files(store):
    before = files(store.root)
    assert store.pack().files == len(STEPS)
    assert files(store.root) == {}
    (path,) = store.root.glob("packed/*.arrow")
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    rows = zip(table["name"].to_pylist(), table["content"].to_pylist(), table["bytes"].to_pylist(), strict=True)
    assert {name: content[:size] for name, content, size in rows} == before
    (shard,) = shards.of(store.root).view().shards
    assert not (shard.content_starts % 64).any()


def test_the_index_tells_any_program_where_each_file_lies(store):
    before = files(store.root)
    store.pack()
    store.prune(datasets=["e2"])
    for row in pq.read_table(store.root / "packed" / "index.parquet").to_pylist():
        shard = (store.root / "packed" / row["shard"]).read_bytes()
        content = shard[row["offset"] : row["offset"] + row["bytes"]]
        assert content == before.pop(row["name"])
        assert zlib.crc32(content) == row["crc32"]
        assert row["fingerprint8"] == recipe_fingerprint(RECIPE)[:8]
    assert {name[:2] for name in before} == {"e2"}


def test_unpack_gives_the_very_files_back(store):
    before, times = files(store.root), {path: path.stat().st_mtime_ns for path in store.root.glob("*.pt")}
    store.pack()
    assert all_read(store)
    assert store.unpack().files == len(STEPS)
    assert files(store.root) == before
    assert {path: path.stat().st_mtime_ns for path in store.root.glob("*.pt")} == times
    assert not (store.root / "packed").exists()


def test_a_dry_run_changes_nothing(store):
    before = files(store.root)
    told = store.pack(dry_run=True)
    assert (told.files, told.bytes) == (len(before), sum(map(len, before.values())))
    assert files(store.root) == before
    store.pack()
    assert store.unpack(dry_run=True).files == len(before)
    assert files(store.root) == {}


def test_only_small_features_of_the_named_data_sets_are_packed(store):
    large = store.put(StepKey("e0", 99), torch.zeros(1, 1, 600_000).half())
    assert store.pack(datasets=["e0"]).files == 10
    assert large.exists()
    assert store.unpack(datasets=["e1"]).files == 0
    assert store.unpack(datasets=["e0"]).files == 10


def test_what_is_unpacked_of_a_shard_is_not_there_twice_under_a_limit(store):
    for index in range(6):
        store.put(StepKey("few", index), tensor(index))
    store.pack()
    limit_bytes = summed_on_disk(store)
    store.set_limit(limit_bytes)
    assert store.unpack(datasets=["few"]).files == 6
    assert summed_on_disk(store) <= limit_bytes
    check(store)
    assert all_read(store)


def test_a_loose_file_wins_and_what_it_hides_never_comes_back(store):
    store.pack()
    store.put(STEPS[0], tensor(100), recipe=RECIPE)
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    store.path_of(STEPS[0]).unlink()  # by hand
    assert store.get(STEPS[0]) is None
    store.stats()  # what nobody journalled is found by a listing


def test_a_foreign_file_over_a_packed_feature_wins_until_it_is_deleted_with_what_it_hides(store):
    store.pack()
    store.path_of(STEPS[0]).write_bytes(store_content(store.root, tensor(100)))
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    assert store.stats().entries == len(STEPS)
    assert store.delete(STEPS[0])
    assert store.get(STEPS[0]) is None
    store.stats()  # what nobody journalled is found by a listing


def store_content(root, value):
    with FeatureStore(root.parent / "other") as other:
        return other.put(StepKey("e9", 9), value, recipe=RECIPE).read_bytes()


def test_kept_files_stay_and_the_packed_copies_take_over_when_they_go(store):
    before = files(store.root)
    store.pack(keep=True)
    assert files(store.root) == before
    assert store.pack(keep=True).files == 0
    for name in before:
        (store.root / name).unlink()
    assert all_read(store)
    store.stats()  # what nobody journalled is found by a listing


@pytest.mark.parametrize("ids", ["ab", "ba"])
def test_packed_copies_of_kept_files_go_when_the_files_are_packed_themselves(store, monkeypatch, ids):
    # Shards have names by chance, and of two rows of one version the shard's name decides which one is read.
    for id_, keep in zip(ids, (True, False), strict=True):
        monkeypatch.setattr("cache_store.packing.naming.shard_name", lambda id_=id_: f"packed/{id_ * 32}.arrow")
        store.pack(keep=keep)
    assert sum(Shard(path).counting().sum() for path in store.root.glob("packed/*.arrow")) == len(STEPS)
    assert all_read(store)
    assert store.unpack().files == len(STEPS)
    assert list(store.root.glob("packed/*.arrow")) == []
    assert all_read(store)


@pytest.mark.parametrize("work", ["pack", "unpack"])
def test_copies_that_are_kept_count_under_the_limit_and_evict_nothing(tmp_path, work):
    with filled(tmp_path / "store") as store:
        if work == "unpack":
            store.pack()
        keep = getattr(store, work)
        all_bytes = summed_on_disk(store)
        store.set_limit(all_bytes * 3 // 2)
        with pytest.raises(StoreFull, match="evict nothing"):
            keep(keep=True)
        assert summed_on_disk(store) == all_bytes
        store.set_limit(all_bytes * 3)
        keep(keep=True)
        assert summed_on_disk(store) > all_bytes * 3 // 2
        assert all_read(store)
        store.close()
        check(store)


def summed_on_disk(store):
    return sum(path.stat().st_size for path in [*store.root.rglob("*.pt"), *store.root.glob("packed/*.arrow")])


def test_a_deleted_packed_feature_is_gone_for_all_who_read(store):
    store.pack()
    with FeatureStore(store.root) as other:
        assert torch.equal(other.get(STEPS[1]), tensor(1))
        assert store.delete(STEPS[1])
        assert other.get(STEPS[1]) is None
        assert ReadOnlyStore(store.root).state_of(STEPS[1]) == "missing"
    assert all_read(store, but=[STEPS[1]])


def test_a_shard_that_is_mostly_dead_is_rewritten_and_the_rest_stays(store):
    store.pack()
    before_bytes = sum(path.stat().st_size for path in store.root.glob("packed/*"))
    store.prune(datasets=["e0", "e1"])
    assert sum(path.stat().st_size for path in store.root.glob("packed/*")) < before_bytes / 2
    assert {key.dataset for key in store.keys()} == {"e2"}
    assert all_read(store, but=[key for key in STEPS if key.dataset != "e2"])


@pytest.mark.parametrize("dead", [10, 18])
def test_down_to_counts_and_frees_what_is_dead_in_shards(store, dead):
    store.pack()
    packed_bytes = summed_on_disk(store)
    for key in STEPS[:dead]:
        store.delete(key)
    size = store.stats().bytes // (len(STEPS) - dead)
    goal_bytes = packed_bytes - (dead - 1) * size
    assert store.prune(down_to_bytes=goal_bytes, dry_run=True).deleted == []
    assert summed_on_disk(store) == packed_bytes
    assert store.prune(down_to_bytes=goal_bytes).deleted == []
    assert summed_on_disk(store) <= goal_bytes
    assert len(store.prune(down_to_bytes=goal_bytes - 3 * size).deleted) in (2, 3)
    assert summed_on_disk(store) <= goal_bytes - 3 * size


def test_down_to_counts_what_loose_files_hide_and_deletes_no_more_than_needed(store):
    store.pack(keep=True)
    goal_bytes, size = summed_on_disk(store) * 3 // 4, store.bytes_of(STEPS[0])
    assert len(store.prune(down_to_bytes=goal_bytes).deleted) <= len(STEPS) // 4 + 2
    assert goal_bytes - 3 * size < summed_on_disk(store) <= goal_bytes


def test_a_prune_that_deletes_nothing_rewrites_what_is_mostly_dead(store):
    store.pack()
    packed_bytes = summed_on_disk(store)
    for key in STEPS[:20]:
        store.delete(key)
    assert store.prune(datasets=["other"]).deleted == []
    assert summed_on_disk(store) < packed_bytes // 2
    assert len(pq.read_table(store.root / "packed" / "index.parquet")) == len(STEPS) - 20


def test_create_only_sees_packed_features(store):
    store.pack()
    with pytest.raises(EntryExists):
        store.put(STEPS[0], tensor(5), create_only=True)


@pytest.mark.parametrize("many", [False, True])
def test_create_only_sees_what_is_packed_while_it_writes(store, monkeypatch, many):
    real = atomic._write_all

    def write_all(fd, buffers):
        monkeypatch.setattr(atomic, "_write_all", real)
        store.pack()
        real(fd, buffers)

    monkeypatch.setattr(atomic, "_write_all", write_all)
    items = [PutItem(StepKey("new", 0), tensor(40), RECIPE), PutItem(STEPS[0], tensor(5), RECIPE)]
    with pytest.raises(EntryExists):
        store.put_many(items, create_only=True) if many else store.put(*items[1][:2], recipe=RECIPE, create_only=True)
    assert all_read(store)
    assert store.contains(StepKey("new", 0)) is many


def test_the_limit_counts_what_dead_rows_still_take(tmp_path):
    with filled(tmp_path / "store") as store:
        store.pack()
        limit_bytes = sum(path.stat().st_size for path in store.root.glob("packed/*"))
        store.set_limit(limit_bytes)
        for number in range(20):
            store.put(StepKey("new", number), tensor(number))
            lie_there = [*store.root.glob("*.pt"), *store.root.glob("packed/*.arrow")]
            assert sum(path.stat().st_size for path in lie_there) <= limit_bytes
        assert all(store.contains(StepKey("new", number)) for number in range(20))
        # Dead rows are no reason to evict more: no more than what came in has to go, and a little for the next ones.
        assert len(STEPS) - 6 <= len(list(store.keys())) < len(STEPS) + 20
        check(store)


def test_packing_what_has_to_make_room_for_its_own_shard_stays_within_the_limit(tmp_path):
    with filled(tmp_path / "store") as store:
        limit_bytes = summed_on_disk(store) + 1
        store.set_limit(limit_bytes)
        assert 0 < store.pack().files < len(STEPS)
        assert summed_on_disk(store) <= limit_bytes
        assert store.stats().entries == len(list(store.keys())) > 0
        check(store)


def test_eviction_takes_packed_features_least_recently_used_first_and_spares_pinned_ones(tmp_path):
    with filled(tmp_path / "store") as store:
        store.pack()
        store.pin(["e1"])
        for key in STEPS[:3]:
            store.get(key)
        store.set_limit(sum(path.stat().st_size for path in store.root.glob("packed/*")))
        for number in range(5):
            store.put(StepKey("new", number), tensor(number))
        kept = set(store.keys())
        assert {key for key in STEPS if key.dataset == "e1"} <= kept
        assert set(STEPS[:3]) <= kept
        assert STEPS[3] not in kept
        check(store)


def test_a_damaged_row_is_a_miss_that_verify_names_and_repair_sets_aside(store):
    store.pack()
    (path,) = store.root.glob("packed/*.arrow")
    content = bytearray(path.read_bytes())
    content[content.find(tensor(4).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    name = store.path_of(STEPS[4]).name
    with FeatureStore(store.root) as other:
        assert [problem.path for problem in other.verify(workers=1).problems] == [name]
        assert [problem.path for problem in other.unpack(dry_run=False).problems] == [name]
        assert other.pack().files == len(STEPS) - 1
        assert [problem.path for problem in other.verify(workers=1, repair=True).problems] == [name]
        assert other.get(STEPS[4]) is None
        assert len(list(store.root.glob(".vlm-cache/quarantine/*"))) == 1
        assert all_read(other, but=[STEPS[4]])


@pytest.mark.parametrize("cut", [5, 1000, 30_000])
def test_a_cut_shard_hides_its_features_and_is_one_named_problem(tmp_path, cut):
    with filled(tmp_path / "store") as store:
        store.pack()
        (path,) = store.root.glob("packed/*.arrow")
        path.write_bytes(path.read_bytes()[:-cut])
        shards.of(store.root).forget()
        shards.of(store.root)._known = (None, shards.EMPTY)
        assert store.get(STEPS[0]) is None
        assert [problem.path for problem in store.verify(workers=1).problems] == [f"packed/{path.name}"]
        store.verify(workers=1, repair=True)
        assert store.verify(workers=1).problems == []
        assert store.stats().entries == 0


def test_a_damaged_file_is_left_loose_and_named(tmp_path):
    with filled(tmp_path / "store") as store:
        path = store.path_of(STEPS[2])
        content = bytearray(path.read_bytes())
        content[content.find(tensor(2).numpy().tobytes())] ^= 1
        path.write_bytes(content)
        found = store.pack()
        assert [problem.path for problem in found.problems] == [path.name]
        assert found.files == len(STEPS) - 1
        assert list(files(store.root)) == [path.name]


def test_files_behind_a_link_to_another_file_system_stay_loose_and_are_named(store):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(store.root).st_dev:
            pytest.skip("there is one file system only")
        (store.root / VIDEO.dataset).symlink_to(elsewhere)
        path = store.put(VIDEO, tensor(0))
        (store.root / "packed").mkdir()
        report = store.pack(datasets=[VIDEO.dataset])
        assert (report.files, report.shards) == (0, 0)
        report = store.pack()
        assert report.files == len(STEPS)
        assert [problem.path for problem in report.problems] == [path.relative_to(store.root).as_posix()]
        assert "another file system" in report.problems[0].reason
        assert path.exists()
        assert store.pack(keep=True).files == 1
        store.unpack()
        store.delete(VIDEO)
        (store.root / VIDEO.dataset).unlink()


def test_a_shard_that_does_not_read_back_removes_no_file(tmp_path, monkeypatch):
    with filled(tmp_path / "store") as store:
        before = files(store.root)
        monkeypatch.setattr(packing.Shard, "names", lambda self: [])
        with pytest.raises(StoreWriteError):
            store.pack()
        assert files(store.root) == before


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_that_is_replaced_between_reading_and_taking_is_kept(store, monkeypatch, by_hand):
    real, content = taking.os.rename, store_content(store.root, tensor(77))

    def rename(source, target):
        if str(source).endswith("e0_vlm0.pt"):
            monkeypatch.setattr(taking.os, "rename", real)
            if by_hand:
                (store.root / "new").write_bytes(content)
                (store.root / "new").replace(source)
            else:
                with FeatureStore(store.root) as other:
                    other.put(STEPS[0], tensor(77))
        real(source, target)

    monkeypatch.setattr(taking.os, "rename", rename)
    assert store.pack().files == len(STEPS) - 1
    assert torch.equal(store.get(STEPS[0]), tensor(77))
    assert list(files(store.root)) == ["e0_vlm0.pt"]
    store.stats()


def test_a_feature_that_is_packed_between_the_two_looks_of_a_delete_is_deleted(store, monkeypatch):
    real = removing.remove_file

    def pack_first(path):
        monkeypatch.setattr(removing, "remove_file", real)
        with FeatureStore(store.root) as other:
            other.pack()
        return real(path)

    monkeypatch.setattr(removing, "remove_file", pack_first)
    assert store.delete(STEPS[0])
    assert store.get(STEPS[0]) is None


def test_a_delete_that_dies_leaves_the_newest_version_or_none(store, monkeypatch):
    store.pack()
    store.path_of(STEPS[0]).write_bytes(store_content(store.root, tensor(100)))

    def die(*_):
        raise Killed

    monkeypatch.setattr(shards, "kill", die)
    with pytest.raises(Killed):
        store.delete(STEPS[0])
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    store.stats()


def test_a_mark_in_a_shard_that_was_just_rewritten_is_set_in_the_new_one(store, monkeypatch):
    store.pack()
    real = shards.Shard.mark

    def rewrite_first(shard, *args, **options):
        monkeypatch.setattr(shards.Shard, "mark", real)
        assert rewriting.rewrite(store.root, [shard])
        real(shard, *args, **options)

    monkeypatch.setattr(shards.Shard, "mark", rewrite_first)
    store.delete(STEPS[0])
    assert store.get(STEPS[0]) is None
    store.stats()


def test_a_row_that_a_stalled_packer_makes_count_during_a_rewrite_is_not_lost(tmp_path, monkeypatch):
    with filled(tmp_path / "store") as store:
        with monkeypatch.context() as patch:
            patch.setattr(packing.Shard, "mark", lambda *_, **__: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                store.pack()
        (shard,) = shards.of(store.root).view().shards
        real = rewriting.os.rename

        def mark_first(source, target):
            monkeypatch.setattr(rewriting.os, "rename", real)
            shard.mark("live", range(shard.rows))
            real(source, target)

        monkeypatch.setattr(rewriting, "_is_stray", lambda *_: True)
        monkeypatch.setattr(rewriting.os, "rename", mark_first)
        assert rewriting.rewrite(store.root, [shard]) is None
        assert shard.has_its_name()


def test_what_a_packer_has_taken_goes_before_an_older_row(store):
    store.pack()
    folder = store.root / "packed" / f"{'0' * 32}.taken"
    folder.mkdir()
    (folder / store.path_of(STEPS[0]).name).write_bytes(store_content(store.root, tensor(100)))
    for _ in range(2):
        assert torch.equal(store.get(STEPS[0]), tensor(100))
        assert torch.equal(store.get_batch(STEPS[:1]).features[0], tensor(100))
        assert store.file_of(STEPS[0]).parent == folder
    store.pack()
    assert store.file_of(STEPS[0]).suffix == ".arrow"
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    store.stats()


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_packed_for_the_first_time_during_an_eviction_is_evicted(tmp_path, monkeypatch, keep):
    def pack_first(*arguments):
        monkeypatch.setattr(evictor, "remove_loose", removing.remove_loose)
        monkeypatch.setattr(scan, "LEASE_WAIT_S", 0.1)  # for the evictor, who waits for the packer here
        packer.pack(keep=keep)
        return removing.remove_loose(*arguments)

    with filled(tmp_path) as packer, FeatureStore(tmp_path) as store:
        monkeypatch.setattr(evictor, "remove_loose", pack_first)
        store.set_limit(store.stats().bytes // 2)  # which the packer has not heard of
        store.put(StepKey("new", 0), tensor(0))
        assert store.get(STEPS[0]) is None  # the least recently used
        found = store.stats()
        assert found.evictions == len(STEPS) + 1 - found.entries > 0
        assert store.verify().problems == []


def test_a_put_during_an_eviction_is_not_evicted(store, monkeypatch):
    real = removing.remove_file

    def put_after(path):
        size = real(path)
        monkeypatch.setattr(removing, "remove_file", real)
        with FeatureStore(store.root) as other:
            other.put(STEPS[0], tensor(100))
        return size

    monkeypatch.setattr(removing, "remove_file", put_after)
    assert removing.remove(store.root, "e0_vlm0.pt")
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    store.stats()


def test_frames_of_a_damaged_row_are_a_miss(tmp_path):
    with FeatureStore(tmp_path / "store") as store:
        store.put(STEPS[0], tensor(0).reshape(4, 16))
        store.pack()
        (path,) = store.root.glob("packed/*.arrow")
        content = bytearray(path.read_bytes())
        content[content.find(tensor(0).numpy().tobytes())] ^= 1
        path.write_bytes(content)
        assert store.get(STEPS[0], frames=[3]) is None


def test_a_damaged_file_does_not_bring_the_older_packed_version_to_light(store):
    store.pack()
    content = bytearray(store_content(store.root, tensor(100)))
    content[content.find(tensor(100).numpy().tobytes())] ^= 1
    store.path_of(STEPS[0]).write_bytes(content)
    assert store.get(STEPS[0]) is None
    assert store.get(STEPS[0]) is None
    store.stats()


def test_a_hidden_row_and_a_lost_file_are_both_noticed(store):
    store.put(StepKey("x", 0), tensor(1))
    store.pack(datasets=["e*"])
    store.stats()
    store.path_of(StepKey("x", 0)).unlink()
    store.path_of(STEPS[0]).write_bytes(store_content(store.root, tensor(100)))
    assert store.stats().entries == len(list(store.entries())) == len(STEPS)


def test_a_feature_deleted_while_it_is_packed_stays_deleted(store, monkeypatch):
    real = packing.take

    def delete_after(root, name, *args):
        is_taken = real(root, name, *args)
        if name == "e1_vlm1.pt":
            with FeatureStore(root) as other:
                assert other.delete(STEPS[1])
        return is_taken

    monkeypatch.setattr(packing, "take", delete_after)
    assert store.pack().files == len(STEPS) - 1
    assert store.get(STEPS[1]) is None
    assert all_read(store, but=[STEPS[1]])


def test_a_feature_deleted_while_it_is_unpacked_stays_deleted(store, monkeypatch):
    from cache_store import unpacking

    store.pack()
    real = unpacking.publish_new

    def publish(found):
        with FeatureStore(store.root) as other:
            assert other.delete(STEPS[1])
        return real(found)

    monkeypatch.setattr(unpacking, "publish_new", publish)
    store.unpack()
    assert store.get(STEPS[1]) is None
    assert all_read(store, but=[STEPS[1]])


@pytest.mark.parametrize("finds", ["verify", "get"])
def test_a_damaged_file_that_a_packer_had_taken_is_found_and_set_aside(store, finds):
    store.pack()
    folder = store.root / "packed" / f"{'0' * 32}.taken"
    folder.mkdir()
    (folder / "e0_vlm500.pt").write_bytes(b"no feature")
    (folder / "e1_vlm1.pt").write_bytes(store_content(store.root, tensor(1)))  # which is packed, too
    found = store.verify()
    assert (found.checked, [problem.path for problem in found.problems]) == (len(STEPS) + 1, ["e0_vlm500.pt"])
    assert store.stats().entries == found.checked
    if finds == "get":
        assert store.get(StepKey("e0", 500)) is None
    else:
        assert store.verify(repair=True).problems[0].quarantined_to
    assert store.verify().problems == []
    assert store.stats().entries == len(STEPS)
    assert [path.name.partition(".")[0] for path in store.root.glob(".vlm-cache/quarantine/*")] == ["e0_vlm500"]
    store.pack()
    assert torch.equal(store.get(STEPS[1]), tensor(1))


def test_readers_find_what_a_packer_has_taken_and_the_next_one_puts_it_back(store, monkeypatch):
    monkeypatch.setattr(packing.Shard, "mark", lambda *_, **__: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        store.pack()
    monkeypatch.undo()
    assert files(store.root).keys() != {path.name for path in store.root.glob("*.pt")}
    with FeatureStore(store.root) as other:
        assert all_read(other)
        assert other.stats().entries == len(STEPS)
        assert other.pack().files == len(STEPS)
        assert all_read(other)
        assert not list(store.root.glob("packed/*.taken"))


def test_a_delete_during_a_rewrite_is_not_undone(store, monkeypatch):
    store.pack()
    store.prune(datasets=["e0"])
    (old,) = shards.of(store.root).view().shards
    real = rewriting.publish

    def publish(buffers, path):
        with FeatureStore(store.root) as other:
            other.delete(STEPS[1])
        real(buffers, path)
        with FeatureStore(store.root) as other:
            other.delete(STEPS[2])

    monkeypatch.setattr(rewriting, "publish", publish)
    assert rewriting.rewrite(store.root, [old])
    assert store.get(STEPS[1]) is None
    assert store.get(STEPS[2]) is None
    assert all_read(store, but=[key for key in STEPS if key.dataset == "e0"] + STEPS[1:3])
    store.stats()  # what nobody journalled is found by a listing


@pytest.mark.parametrize("work", [FeatureStore.pack, FeatureStore.unpack])
def test_what_a_killed_rewrite_left_twice_goes_with_the_next_work(store, monkeypatch, work):
    store.pack()
    store.prune(datasets=["e0"])
    (old,) = shards.of(store.root).view().shards
    with monkeypatch.context() as patch:
        patch.setattr(rewriting, "_removed", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            rewriting.rewrite(store.root, [old])
    twice_bytes = summed_on_disk(store)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "merge", lambda *_, **__: 0)
        work(store)
    assert summed_on_disk(store) == twice_bytes or work is FeatureStore.unpack  # a rewriter may still be at it
    monkeypatch.setattr(rewriting, "_STRAY_AFTER_S", -1.0)
    work(store)
    assert summed_on_disk(store) < 0.6 * twice_bytes
    assert all_read(store, but=[key for key in STEPS if key.dataset == "e0"])


def test_two_packers_without_locks_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("filelock._unix.fcntl.flock", lambda *_: None)
    with filled(tmp_path / "store") as store:
        monkeypatch.setattr(packing, "SHARD_BYTES", 8_000)
        workers = [threading.Thread(target=FeatureStore(store.root).pack) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all_read(store)
        assert files(store.root) == {}
        assert store.stats().entries == len(STEPS)
        store.prune(datasets=["e0"])
        assert {key.dataset for key in store.keys()} == {"e1", "e2"}
        assert store.verify(workers=1).problems == []


def test_a_second_recipe_and_its_owner_survive_packing_without_books(tmp_path):
    import shutil

    with FeatureStore(tmp_path / "store") as store:
        store.put(VIDEO, {"vision_features": tensor(1)}, recipe={"weights": "a"})
        store.put(VIDEO, {"vision_features": tensor(2)}, recipe={"weights": "b"})
        store.pack()
        shutil.rmtree(store.root / ".vlm-cache")
    with FeatureStore(tmp_path / "store") as store:
        assert torch.equal(store.get(VIDEO, recipe={"weights": "b"})["vision_features"], tensor(2))
        assert torch.equal(store.get(VIDEO, recipe={"weights": "a"})["vision_features"], tensor(1))
        other = VideoKey("Video-MME", "w", 8, "0" * 8)
        assert store.put(other, {"vision_features": tensor(3)}, recipe={"weights": "b"}).parent.name != "Video-MME"
        models = store.stats().datasets["Video-MME"].models
        assert [(model.entries, model.recipe_fingerprint8 is not None) for model in models] == [(1, True)]


def test_a_packed_store_is_not_migrated_but_refused(store):
    store.pack()
    with pytest.raises(StoreFormatError, match="unpack"):
        list(migrate(store, [], recipe=None, dry_run=True))


def test_a_shard_that_a_user_may_not_write_is_an_error_by_name(store, monkeypatch):
    store.pack()
    real = os.open

    def refused(path, flags, *args, **options):
        if str(path).endswith(".arrow") and flags & os.O_WRONLY:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **options)

    monkeypatch.setattr("cache_store.shard_file.os.open", refused)
    with pytest.raises(StoreWriteError):
        store.delete(STEPS[0])
    monkeypatch.undo()
    assert all_read(store)


def test_packing_takes_older_versions_out_of_the_count(store, monkeypatch):
    monkeypatch.setattr(packing, "merge", lambda *_, **__: 0)
    store.pack()
    store.path_of(STEPS[0]).write_bytes(store_content(store.root, tensor(100)))
    store.stats()  # what nobody journalled is found by a listing
    store.pack()
    places = shards.of(store.root).view().places("e0_vlm0.pt")
    assert [place.shard.counts(place.row) for place in sorted(places, key=lambda place: place.version)] == [False, True]
    assert torch.equal(store.get(STEPS[0]), tensor(100))


def test_a_file_that_appears_after_a_packed_read_wins(store):
    store.pack()
    assert torch.equal(store.get(STEPS[1]), tensor(1))
    store.path_of(STEPS[0]).write_bytes(store_content(store.root, tensor(100)))  # by hand: the row still counts
    assert torch.equal(store.get(STEPS[0]), tensor(100))
    assert torch.equal(store.get(STEPS[1]), tensor(1))
    store.stats()  # what nobody journalled is found by a listing
    store.unpack()
    assert torch.equal(store.get(STEPS[1]), tensor(1))


def in_many_shards(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(packing, "SHARD_BYTES", 8_000)
        store.pack()
    assert len(list(store.root.glob("packed/*.arrow"))) > 4


def test_small_shards_are_merged_and_give_the_same_files_back(store, monkeypatch):
    before = files(store.root)
    in_many_shards(store, monkeypatch)
    store.delete(STEPS[3])
    many = len(list(store.root.glob("packed/*.arrow")))
    assert (store.pack().merged, store.pack().merged) == (many, 0)
    (path,) = store.root.glob("packed/*.arrow")
    assert Shard(path).names() == sorted(set(before) - {store.path_of(STEPS[3]).name})
    assert all_read(store, but=[STEPS[3]])
    check(store)
    store.unpack()
    assert files(store.root) == {name: content for name, content in before.items() if name != "e0_vlm3.pt"}


def test_shards_grow_no_larger_than_one_that_is_packed(store, monkeypatch):
    in_many_shards(store, monkeypatch)
    monkeypatch.setattr(packing, "SHARD_BYTES", 30_000)
    store.pack()
    sizes = [path.stat().st_size for path in store.root.glob("packed/*.arrow")]
    assert len(sizes) > 1
    assert max(sizes) <= 30_000
    assert sum(size < 15_000 for size in sizes) <= 1
    assert all_read(store)


@pytest.mark.parametrize("at", range(5))
def test_a_merge_that_is_killed_or_has_a_rival_loses_nothing(store, monkeypatch, at):
    in_many_shards(store, monkeypatch)
    calls = []
    real = rewriting._removed

    def removed(old, copied):
        calls.append(old)
        if len(calls) == at + 1:
            monkeypatch.undo()
            FeatureStore(store.root).pack()  # without a lock, as where it does not work
            if at % 2:
                raise Killed
        return real(old, copied)

    monkeypatch.setattr(rewriting, "_removed", removed)
    monkeypatch.setattr("filelock._unix.fcntl.flock", lambda *_: None)
    with contextlib.suppress(Killed):
        store.pack()
    assert all_read(store)
    assert store.stats().entries == len(STEPS)
    store.pack()
    assert sum(int(Shard(path).counting().sum()) for path in store.root.glob("packed/*.arrow")) == len(STEPS)
    assert all_read(store)
