"""A batch holds what single reads return, wherever the features lie, and never another sample's."""

from __future__ import annotations

import itertools
import math
import os
import time

import pytest
import torch

from cache_store import FeatureStore, RecipeMismatch, StepKey, VideoKey, batch_read, shards
from tests.cache_store.conftest import tensor

RECIPE = {"weights": "a"}
STEPS = [StepKey(f"e{number % 3}", number) for number in range(40)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["loose", "packed", "packed, one thread", "packed where nothing may be mapped"])
def store(request, tmp_path, monkeypatch, threads):
    if request.param.endswith("mapped"):
        monkeypatch.setattr("cache_store.shard_file.is_on_local_disk", lambda *_: False)
    threads(1 if request.param.endswith("one thread") else 2)
    with FeatureStore(tmp_path / "store") as store:
        for number, key in enumerate(STEPS):
            store.put(key, tensor(number), recipe=RECIPE)
        if request.param != "loose":
            store.pack()
        yield store
    assert store.verify(workers=1).problems == []


def settled(store):
    """Long enough without a change for whole folders to be trusted, which nobody has to wait for."""
    past_ns = time.time_ns() - 10**9
    os.utime(store.root, ns=(past_ns, past_ns))


def expected(numbers):
    return torch.stack([tensor(number) for number in numbers])


def test_rows_come_in_the_order_of_the_keys_again_and_again(store):
    settled(store)
    order = [7, 3, 39, 0, 3, 21]
    for _ in range(4):
        batch = store.get_batch([STEPS[number] for number in order], recipe=RECIPE)
        assert batch.missing == []
        assert torch.equal(batch.features, expected(order))


def test_a_ready_buffer_is_filled(store):
    out = torch.empty(40, 1, 1, 64, dtype=torch.float16)
    for _ in range(2):
        assert store.get_batch(STEPS, out=out.fill_(0)).features is out
        assert torch.equal(out, expected(range(40)))


def test_missing_keys_are_told_by_position(store):
    keys = [STEPS[0], StepKey("e0", 1), STEPS[5], StepKey("absent", 3)]
    for _ in range(3):
        batch = store.get_batch(keys)
        assert batch.missing == [1, 3]
        assert torch.equal(batch.features[[0, 2]], expected([0, 5]))


def test_what_is_put_deleted_or_written_by_hand_counts_at_once(store):
    settled(store)
    for _ in range(3):
        store.get_batch(STEPS)
    store.put(STEPS[0], tensor(100))
    assert store.delete(STEPS[1])
    store.path_of(STEPS[2]).write_bytes(store.put(StepKey("x", 0), tensor(102)).read_bytes())
    for _ in range(3):
        batch = store.get_batch(STEPS[:3])
        assert batch.missing == [1]
        assert torch.equal(batch.features[[0, 2]], expected([100, 102]))
        settled(store)
    store.path_of(STEPS[2]).unlink()


def test_another_recipe_is_an_error_a_miss_or_used(store):
    store.get_batch(STEPS)
    for _ in range(2):
        with pytest.raises(RecipeMismatch):
            store.get_batch(STEPS, recipe={"weights": "b"})
        assert store.get_batch(STEPS[:3], recipe={"weights": "b"}, on_stale="miss").missing == [0, 1, 2]
        used = store.get_batch(STEPS[:3], recipe={"weights": "b"}, on_stale="use")
        assert torch.equal(used.features, expected(range(3)))


def test_features_that_do_not_fit_together_are_refused(store):
    store.put(StepKey("wide", 0), tensor(1, width=128))
    for _ in range(2):
        with pytest.raises(ValueError, match="batch"):
            store.get_batch([STEPS[0], StepKey("wide", 0)])
        with pytest.raises(ValueError, match="float32"):
            store.get_batch(STEPS[:2], out=torch.empty(2, 1, 1, 64))
    with pytest.raises(ValueError, match="a row for each key"):
        store.get_batch(STEPS[:2], out=torch.empty(3, 1, 1, 64).half())


def test_videos_give_their_main_tensor(store):
    key = VideoKey("Video-MME", "v", 8, "0" * 8)
    store.put(key, {"vision_features": tensor(5), "video_id": "v"}, recipe=RECIPE)
    assert torch.equal(store.get_batch([key], recipe=RECIPE).features, expected([5]))
    if list(store.root.glob("packed/*")):
        store.pack()
        assert torch.equal(store.get_batch([key], recipe=RECIPE).features, expected([5]))


@pytest.mark.parametrize("shape", [(), (0, 3), (5,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64])
def test_features_of_any_dtype_and_shape_make_a_batch(store, shape, dtype):
    keys = [StepKey("odd", number) for number in range(4)]
    values = torch.arange(4 * 15).remainder(7).to(dtype).reshape(4, -1)[:, : math.prod(shape)].reshape(4, *shape)
    for key, value in zip(keys, values, strict=True):
        store.put(key, value)
    if list(store.root.glob("packed/*")):
        store.pack()
    for _ in range(2):
        batch = store.get_batch(keys[::-1])
        assert batch.missing == []
        assert torch.equal(batch.features, values.flip(0))


def test_an_empty_batch_is_empty(store):
    assert store.get_batch([]).features.shape[0] == 0


def test_a_damaged_row_is_missing_and_the_others_are_not(tmp_path):
    with FeatureStore(tmp_path / "store") as store:
        for number, key in enumerate(STEPS):
            store.put(key, tensor(number))
        store.pack()
        (path,) = store.root.glob("packed/*.arrow")
        content = bytearray(path.read_bytes())
        content[content.find(tensor(4).numpy().tobytes())] ^= 1
        path.write_bytes(content)
        store.get(STEPS[0])
        for _ in range(2):
            assert store.get_batch(STEPS).missing == [4]
        assert store.stats().damaged == 1


def test_reads_of_batches_count_as_uses(store):
    store.get_batch(STEPS)
    assert store.stats().hits == len(STEPS)


def test_packed_rows_are_copied_without_opening_a_file(tmp_path, monkeypatch):
    with FeatureStore(tmp_path / "store") as store:
        for number, key in enumerate(STEPS):
            store.put(key, tensor(number))
        store.pack()
        store.get_batch(STEPS)  # learns what the rows are
        store.get_batch(STEPS)
        monkeypatch.setattr(batch_read.BatchReader, "_looked_at", lambda *_: pytest.fail("looked at twice"))
        monkeypatch.setattr("cache_store.reader.Reader.read_step", lambda *_: pytest.fail("read one by one"))
        assert torch.equal(store.get_batch(STEPS).features, expected(range(40)))


def test_a_batch_is_read_where_more_recipes_than_a_short_number_counts_were_read(tmp_path):
    with FeatureStore(tmp_path / "store") as store:
        for number, key in enumerate(STEPS):
            store.put(key, tensor(number), recipe={"instruction": number})
        store.pack()
        store.get_batch(STEPS[:1])
        store._reader._batches._next_number = itertools.count(2**15)
        for _ in range(3):
            assert torch.equal(store.get_batch(STEPS).features, expected(range(40)))
        assert len(store._reader._batches._numbers) > 30


def test_a_name_with_another_ones_hash_value_is_missing(tmp_path, monkeypatch):
    for module in (shards, batch_read):
        monkeypatch.setattr(module, "hash", lambda name: 7, raising=False)
    with FeatureStore(tmp_path / "store") as store:
        store.put(STEPS[0], tensor(0))
        store.pack()
        for _ in range(3):
            assert store.get_batch([STEPS[0], STEPS[1]]).missing == [1]
            assert store.get(STEPS[1]) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_spans_shards_that_come_and_go_and_names_of_any_script(tmp_path, threads, count, monkeypatch):
    threads(count)
    monkeypatch.setattr("cache_store.packing.merge", lambda *_, **__: 0)
    keys = [StepKey(episode, number) for number in range(24) for episode in ("ascii", "épisode", "回合")]
    with FeatureStore(tmp_path / "store") as store:
        for until in (24, 48, 72):
            for number, key in enumerate(keys[:until]):
                if number >= until - 24:
                    store.put(key, tensor(number))
            store.pack()
            for _ in range(2):  # known rows, and new ones beside them
                batch = store.get_batch(keys[:until][::-1])
                assert batch.missing == []
                assert torch.equal(batch.features, expected(range(until)).flip(0))
        assert len(list(store.root.glob("packed/*.arrow"))) == 3
        for number, key in enumerate(keys):
            assert torch.equal(store.get(key), tensor(number))
        for key in keys[:40]:
            store.delete(key)
        store.pack()  # rewrites shards, most of whose rows are gone
        for merges in (False, True):
            if merges:
                monkeypatch.undo()
                assert store.pack().merged > 1
            batch = store.get_batch(keys)
            assert batch.missing == list(range(40))
            assert torch.equal(batch.features[40:], expected(range(40, 72)))
        assert store.verify(workers=1).problems == []
        assert sorted(store.keys(), key=str) == sorted(keys[40:], key=str)
