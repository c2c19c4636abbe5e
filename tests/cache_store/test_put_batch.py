"""What `put_batch` writes into shards is what `put` would have written, and replaces what was there, whoever has it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cache_store import FeatureStore, StepKey, VideoKey, atomic, batch_write, packing, shards, taking
from cache_store.errors import InvalidKey, StoreFull, StoreWriteError
from cache_store.int8 import STORAGE
from cache_store.shard_file import Shard
from tests.cache_store.conftest import tensor
from tests.cache_store.test_packing import Killed, check, files, summed_on_disk

RECIPE = {"weights": "a", "note": '"vlm_idx":7'}
KEYS = [StepKey(f"e{number % 3}", number**3, "0a1b2c3d" if number % 2 else None) for number in range(30)]
FEATURES = torch.stack([tensor(number) for number in range(len(KEYS))])


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store") as store:
        yield store
        store.close()
        check(store)


def content(store, key):
    return store._content(store.path_of(key).relative_to(store.root).as_posix()).whole


def counting_rows(store):
    return sum(int(Shard(path).counting().sum()) for path in store.root.glob("packed/*.arrow"))


def read(store, keys=KEYS):
    return torch.stack([store.get(key) for key in keys])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(1, 1, 64), (), (5,), (2, 3)])
def test_the_bytes_are_those_of_put(store, tmp_path, dtype, shape):
    features = (torch.rand(len(KEYS), *shape) * 3).to(getattr(torch, dtype))
    for recipe, provenance in ((None, None), (RECIPE, {"host": "h", "vlm_idx": 3})):
        store.put_batch(KEYS, features, recipe=recipe, provenance=provenance)
        with FeatureStore(tmp_path / "other") as other:
            for key, feature in zip(KEYS, features, strict=True):
                assert content(store, key) == other.put(key, feature, recipe=recipe, provenance=provenance).read_bytes()
                assert torch.equal(store.get(key, recipe=recipe), feature)
    assert files(store.root) == {}


@pytest.mark.parametrize(
    "features",
    [
        FEATURES.clone().requires_grad_(),
        FEATURES.expand(4, *FEATURES.shape)[2],
        torch.stack([FEATURES, FEATURES], -1)[..., 0],
        torch.stack([FEATURES, FEATURES])[1],
    ],
)
def test_of_views_and_of_weights_their_values_are_stored(store, features):
    store.put_batch(KEYS, features)
    assert torch.equal(read(store), FEATURES)


def test_of_several_rows_with_one_key_the_last_one_counts(store):
    store.put_batch([KEYS[0], KEYS[1], KEYS[0]], FEATURES[:3])
    assert torch.equal(read(store, KEYS[:2]), FEATURES[[2, 1]])
    assert counting_rows(store) == 2


@pytest.mark.parametrize("before", ["loose", "packed", "batch", "kept"])
def test_it_replaces_what_the_keys_held(store, before):
    if before == "batch":
        store.put_batch(KEYS[:20], FEATURES[:20] + 1)
    else:
        for key in KEYS[:20]:
            store.put(key, tensor(99), recipe=RECIPE)
    if before in ("packed", "kept"):
        store.pack(keep=before == "kept")
    store.put_batch(KEYS, FEATURES)
    assert torch.equal(read(store), FEATURES)
    assert (files(store.root), counting_rows(store)) == ({}, len(KEYS))
    assert store.stats().entries == len(KEYS)
    check(store)
    store.put(KEYS[0], tensor(77))
    assert torch.equal(store.get(KEYS[0]), tensor(77))
    assert store.delete(KEYS[0])
    assert store.get(KEYS[0]) is None
    store.pack()
    store.unpack()
    assert torch.equal(read(store, KEYS[1:]), FEATURES[1:])


@pytest.mark.parametrize(
    "features", [torch.ones(3, 1, 1, 600_000).half(), torch.ones(3, 0), torch.ones(3, 4, dtype=torch.uint16)]
)
def test_what_shards_cannot_keep_becomes_files(store, features):
    store.put_batch(KEYS[:3], features)
    assert len(files(store.root)) == 3
    assert torch.equal(read(store, KEYS[:3]), features)


@pytest.mark.parametrize(
    ("keys", "features", "options", "error"),
    [
        (KEYS[:2], FEATURES[:3], {}, ValueError),
        ([VideoKey("Video-MME", "v", 8, "0" * 8)], FEATURES[:1], {}, ValueError),
        ([StepKey("../e", 1)], FEATURES[:1], {}, InvalidKey),
        ([KEYS[0], StepKey("e", -1)], FEATURES[:2], {}, InvalidKey),
        (KEYS[:2], FEATURES[:2], {"recipe": {"storage": dict(STORAGE)}}, TypeError),
        (KEYS[:2], FEATURES[:2], {"recipe": {"a": object()}}, TypeError),
        (KEYS[:2], FEATURES[:2].to_sparse(), {}, TypeError),
        (KEYS[:2], FEATURES[:2].numpy(), {}, TypeError),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is(store, keys, features, options, error):
    with pytest.raises(error):
        store.put_batch(keys, features, **options)
    assert not (store.root / "packed").exists()


def test_nothing_is_stored_of_nothing(store):
    store.put_batch([], torch.empty(0, 1, 1, 64))
    assert not (store.root / "packed").exists()


def test_more_than_a_shard_holds_goes_into_several(store, monkeypatch):
    monkeypatch.setattr(batch_write, "SHARD_BYTES", 30_000)
    store.put_batch(KEYS, FEATURES)
    assert len(list(store.root.glob("packed/*.arrow"))) > 2
    assert torch.equal(read(store), FEATURES)


def test_an_error_tells_what_is_stored_all_the_same(store, monkeypatch):
    monkeypatch.setattr(batch_write, "SHARD_BYTES", 30_000)
    calls = []

    def publish(buffers, path):
        calls.append(path)
        if len(calls) == 2:
            raise StoreWriteError(str(path), OSError(5, "Input/output error"))
        atomic.publish(buffers, path)

    monkeypatch.setattr(batch_write, "publish", publish)
    with pytest.raises(StoreWriteError) as caught:
        store.put_batch(KEYS, FEATURES)
    stored = [key for key in KEYS if store.get(key) is not None]
    assert 0 < len(stored) < len(KEYS)
    assert {store.path_of(key) for key in stored} == set(caught.value.published)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_files_that_cannot_be_moved_away_stay_what_they_are(store, monkeypatch, at):
    for key in KEYS[:6]:
        store.put(key, tensor(99))
    calls = []

    def take(*arguments):
        calls.append(None)
        if len(calls) > at:
            raise StoreWriteError("x", OSError(5, "Input/output error"))
        return taking.take(*arguments)

    monkeypatch.setattr(batch_write, "take", take)
    with pytest.raises(StoreWriteError) as caught:
        store.put_batch(KEYS, FEATURES)
    is_new = [torch.equal(store.get(key), feature) for key, feature in zip(KEYS, FEATURES, strict=True)]
    assert is_new == [store.path_of(key) in caught.value.published for key in KEYS]
    assert (sum(is_new[:6]), sum(is_new[6:])) == (at, len(KEYS) - 6)
    check(store)


def test_it_stays_within_the_limit_and_spares_what_the_run_has_put(tmp_path):
    with FeatureStore(tmp_path / "store", run_id="run") as store:
        for number in range(30):
            store.put(StepKey("old", number), tensor(number))
        old_bytes = summed_on_disk(store)
    with FeatureStore(tmp_path / "store", run_id="next", limit_bytes=old_bytes) as store:
        for start in range(0, 30, 10):
            store.put_batch(KEYS[start : start + 10], FEATURES[start : start + 10])
            assert summed_on_disk(store) <= old_bytes
            assert torch.equal(read(store, KEYS[: start + 10]), FEATURES[: start + 10]) if start < 20 else True
            check(store)
            if start == 10:
                before = files(store.root)
                with pytest.raises(StoreFull):
                    store.put_batch(KEYS, FEATURES)
                assert torch.equal(read(store, KEYS[:20]), FEATURES[:20])
                assert set(files(store.root)) <= set(before)
                break


def test_each_process_finds_what_others_add_and_remove(store, monkeypatch):
    seen = FeatureStore(store.root)
    for start in range(0, 30, 6):
        store.put_batch(KEYS[start : start + 6], FEATURES[start : start + 6])
        assert torch.equal(read(seen, KEYS[: start + 6]), FEATURES[: start + 6])
        assert not any(seen.contains(key) for key in KEYS[start + 6 :])
    code = (
        f"import sys, torch; sys.path[:0] = {sys.path!r}\n"
        f"from cache_store import FeatureStore, StepKey\n"
        f"store = FeatureStore({str(store.root)!r})\n"
        f"store.put_batch([StepKey('e0', 0), StepKey('n', 1)], torch.ones(2, 3))\n"
        f"store.delete(StepKey('e1', 64)); store.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(seen.get(StepKey("n", 1)), torch.ones(3))
    assert torch.equal(store.get(KEYS[0]), torch.ones(3))
    others = [key for key in KEYS[1:] if key != StepKey("e1", 64)]
    assert len(others) < len(KEYS) - 1 or seen.get(KEYS[4]) is None
    seen.close()


def test_an_index_that_has_grown_is_one_that_was_made_anew(tmp_path):
    store, rng = FeatureStore(tmp_path / "store"), np.random.default_rng(0)
    for _ in range(12):
        numbers = rng.choice(60, 9, replace=False).tolist()
        store.put_batch([StepKey("e", number) for number in numbers], torch.rand(9, 4))
        view = shards.of(store.root).view()
        hashes, rows = view._index
        fresh_hashes, fresh_rows = shards.View(view.shards)._index
        assert (hashes == fresh_hashes).all()
        names = [[view.place(row).shard.name(view.place(row).row) for row in found] for found in (rows, fresh_rows)]
        assert names[0] == names[1]
        assert view.having([f"e_vlm{number}.pt" for number in range(60)]) == [
            number for number in range(60) if view.places(f"e_vlm{number}.pt")
        ]
        if rng.random() < 0.3:
            store.pack()
    store.close()


# Whoever comes in between.


def test_a_file_that_is_put_meanwhile_wins(store, monkeypatch):
    store.put(KEYS[0], tensor(99))

    def take(*arguments):
        monkeypatch.undo()
        store.put(KEYS[0], tensor(100))
        return taking.take(*arguments)

    monkeypatch.setattr(batch_write, "take", take)
    store.put_batch(KEYS, FEATURES)
    assert torch.equal(store.get(KEYS[0]), tensor(100))
    assert torch.equal(read(store, KEYS[1:]), FEATURES[1:])
    assert store.delete(KEYS[0])
    assert store.get(KEYS[0]) is None
    store.stats()  # what the two hide of each other is found by a listing


def test_what_a_dead_packer_had_taken_does_not_come_back(store, monkeypatch):
    for key in KEYS[:5]:
        store.put(key, tensor(99))
    with monkeypatch.context() as patch:
        patch.setattr(packing.Shard, "mark", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            store.pack()
    assert files(store.root / "packed")
    store.put_batch(KEYS, FEATURES)
    assert torch.equal(read(store), FEATURES)
    store.pack()
    assert torch.equal(read(store), FEATURES)
    assert files(store.root) == {}


@pytest.mark.parametrize("moment", ["taken", "marked", "settled"])
def test_a_packer_at_work_does_not_bring_the_older_version_back(store, monkeypatch, moment):
    for key in KEYS[:5]:
        store.put(key, tensor(99))
    real = packing.Shard.mark

    def mark(shard, column, rows, **options):
        if column == "live" and moment == "taken":
            monkeypatch.undo()
            store.put_batch(KEYS, FEATURES)
        real(shard, column, rows, **options)
        if column == ("live" if moment == "marked" else "dead") and moment != "taken":
            monkeypatch.undo()
            store.put_batch(KEYS, FEATURES)

    monkeypatch.setattr(packing.Shard, "mark", mark)
    store.pack()
    assert torch.equal(read(store), FEATURES)
    assert files(store.root) == {}
    store.pack()
    assert torch.equal(read(store), FEATURES)
    store.stats()


def test_a_packer_that_takes_the_file_first_or_puts_it_back_leaves_no_older_version(store, monkeypatch):
    store.put(KEYS[0], tensor(99))
    folder = store.root / "packed" / f"{'0' * 32}.taken"

    def take(root, name, *_):
        monkeypatch.setattr(batch_write, "take", taking.take)
        folder.mkdir()
        os.rename(f"{root}/{name}", folder / name)
        return False

    def mark(shard, *arguments, **options):
        real(shard, *arguments, **options)
        monkeypatch.setattr(batch_write.Shard, "mark", real)
        os.rename(folder / names[0], store.root / names[0])

    names, real = list(files(store.root)), batch_write.Shard.mark
    monkeypatch.setattr(batch_write.Shard, "mark", mark)
    monkeypatch.setattr(batch_write, "take", take)
    store.put_batch(KEYS, FEATURES)
    assert torch.equal(read(store), FEATURES)
    assert files(store.root) == {}
    folder.rmdir()
    store.stats()
