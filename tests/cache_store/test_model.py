"""Any sequence of operations leaves the store equal to a dict, through crashes, reopenings and lost books."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache_store import (
    EntryExists,
    FeatureStore,
    PutItem,
    StepKey,
    StoreFull,
    VideoKey,
    atomic,
    naming,
    recipe_fingerprint,
)
from cache_store.ledger import Ledger
from cache_store.shard_file import Shard
from tests.cache_store.conftest import SimulatedCrash, published_bytes, remove_snapshots, tensor

RECIPES = [None, {"weights": "a"}, {"weights": "b"}]
KEYS = [StepKey("e", 0), StepKey("e", 1), StepKey("e", 1, "0a1b2c3d"), StepKey("e_vlm1", 1)]
VIDEOS = [VideoKey("Video-MME", "v", 8, "0" * 8), VideoKey("Video-MME", "w", 8, "0" * 8)]


class StoreAgainstDict(RuleBasedStateMachine):
    @initialize()
    def open(self):
        self.folder = tempfile.mkdtemp(prefix="vlm-cache-model-")
        self.store = FeatureStore(self.folder)
        self.steps: dict[StepKey, int] = {}
        self.videos: dict[tuple[VideoKey, int], int] = {}

    @rule(key=st.sampled_from(KEYS), seed=st.integers(0, 5))
    def put(self, key, seed):
        self.store.put(key, tensor(seed))
        self.steps[key] = seed

    @rule(key=st.sampled_from(VIDEOS), seed=st.integers(0, 5), recipe=st.integers(1, 2))
    def put_video(self, key, seed, recipe):
        self.store.put(key, {"vision_features": tensor(seed)}, recipe=RECIPES[recipe])
        self.videos[key, recipe] = seed

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), seed=st.integers(0, 5))
    def put_many(self, keys, seed):
        self.store.put_many([PutItem(key, tensor(seed + place)) for place, key in enumerate(keys)])
        self.steps.update({key: seed + place for place, key in enumerate(keys)})

    @rule(key=st.sampled_from(KEYS), seed=st.integers(0, 5))
    def put_if_absent(self, key, seed):
        with contextlib.suppress(EntryExists):
            self.store.put(key, tensor(seed), create_only=True)
            assert key not in self.steps
            self.steps[key] = seed
        assert key in self.steps

    @rule(key=st.sampled_from(KEYS), position=st.integers(0, 127))
    def damage(self, key, position):
        path = self.store.path_of(key)
        if key in self.steps and path.exists():
            content = bytearray(path.read_bytes())
            content[content.find(tensor(self.steps[key]).numpy().tobytes()) + position] ^= 1
            path.write_bytes(content)
            del self.steps[key]
            assert self.store.get(key) is None

    @rule()
    def ask_for_states(self):
        states = self.store.states((key, None) for key in KEYS)
        assert [state == "present" for state in states] == [key in self.steps for key in KEYS]

    @rule(key=st.sampled_from(KEYS))
    def get(self, key):
        value = self.store.get(key)
        assert (value is None) == (key not in self.steps)
        assert value is None or torch.equal(value, tensor(self.steps[key]))

    @rule(key=st.sampled_from(VIDEOS), recipe=st.integers(1, 2))
    def get_video(self, key, recipe):
        value = self.store.get(key, recipe=RECIPES[recipe], on_stale="miss")
        seed = self.videos.get((key, recipe))
        assert (value is None) == (seed is None)
        assert value is None or torch.equal(value["vision_features"], tensor(seed))

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key):
        assert self.store.delete(key) == (self.steps.pop(key, None) is not None)

    @rule(key=st.sampled_from(KEYS))
    def die_while_writing(self, key):
        crash = mock.patch.object(atomic.os, "replace", side_effect=SimulatedCrash)
        tidy = mock.patch.object(atomic, "_remove_quietly")
        with crash, tidy, contextlib.suppress(SimulatedCrash):
            self.store.put(key, tensor(9))

    @rule()
    def close_and_open_another(self):
        self.store.close()
        self.store = FeatureStore(self.folder)

    @rule()
    def lose_the_books(self):
        # A family without files loses its owner with them, which is no wrong answer: both recipes still read.
        shutil.rmtree(f"{self.folder}/.vlm-cache", ignore_errors=True)

    @rule()
    def clear(self):
        self.store.clear()
        self.steps.clear()
        self.videos.clear()

    @rule()
    def ask_for_stats(self):
        stats = self.store.stats()
        assert stats.entries == len(self.steps) + len(self.videos)
        assert stats.bytes == sum(entry.bytes for entry in self.store.entries())
        view = Ledger(self.store.root)
        view.refresh()
        assert view.total_bytes == bytes_there(self.store.root)
        assert stats.bytes == view.total_bytes or list(self.store.root.glob("packed/*.arrow"))

    @invariant()
    def files_are_the_truth(self):
        found = names_there(self.store.root)
        assert {name for name in found if "_vlm" in name} == {naming.relative_path(key) for key in self.steps}
        assert sum("Video-MME" in name for name in found) == len(self.videos)
        for path in self.store.root.glob("Video-MME@*"):
            assert path.name.partition("@")[2] in {recipe_fingerprint(r)[:8] for r in RECIPES[1:]}

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            assert self.store.verify().problems == []
            shutil.rmtree(self.folder)


class PackedAgainstDict(StoreAgainstDict):
    """The same with features that go into shards and come out of them."""

    @rule(keep=st.booleans())
    def pack(self, keep):
        assert self.store.pack(keep=keep).problems == []
        assert keep or not list(self.store.root.rglob("*.pt"))

    @rule(keep=st.booleans())
    def unpack(self, keep):
        assert self.store.unpack(keep=keep).problems == []
        # But for the rows of a packer that died, which count for nothing.
        assert keep or not any(Shard(path).counting().any() for path in self.store.root.glob("packed/*.arrow"))

    @rule(at=st.sampled_from([1, 3, 7]), unpacks=st.booleans())
    def die_while_packing(self, at, unpacks):
        with dying(at):
            (self.store.unpack if unpacks else self.store.pack)()

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), seed=st.integers(0, 5))
    def put_batch(self, keys, seed):
        self.store.put_batch(keys, torch.stack([tensor(seed + place) for place in range(len(keys))]))
        self.steps.update({key: seed + place for place, key in enumerate(keys)})

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True), at=st.integers(1, 7))
    def die_while_putting_a_batch(self, keys, at):
        with dying(at):
            self.store.put_batch(keys, torch.stack([tensor(10 + place) for place in range(len(keys))]))
        for place, key in enumerate(keys):
            value = self.store.get(key)
            if value is not None and torch.equal(value, tensor(10 + place)):
                self.steps[key] = 10 + place  # else it is what it was

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def get_batch(self, keys):
        batch = self.store.get_batch(keys)
        assert batch.missing == [place for place, key in enumerate(keys) if key not in self.steps]
        for place, key in enumerate(keys):
            assert place in batch.missing or torch.equal(batch.features[place], tensor(self.steps[key]))


@contextlib.contextmanager
def dying(at):
    """The process ends in the call of the system that is the `at`th of those that change what is where."""
    calls = []

    def crash(real):
        def call(*args, **options):
            calls.append(None)
            if len(calls) == at:
                raise SimulatedCrash
            return real(*args, **options)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("rename", "replace", "link", "pwrite", "unlink"):
            stack.enter_context(mock.patch.object(atomic.os, name, crash(getattr(atomic.os, name))))
        stack.enter_context(mock.patch.object(atomic, "_remove_quietly"))
        stack.enter_context(contextlib.suppress(SimulatedCrash))
        yield


def names_there(root):
    """By the rule alone: final names, taken ones, and rows that count."""
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.pt") if ".taken" not in str(path)}
    for folder in root.glob("packed/*.taken"):
        found |= {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
    for path in root.glob("packed/*.arrow"):
        shard = Shard(path)
        found |= {shard.name(row) for row in shard.counting().nonzero()[0]}
    return found


def bytes_there(root):
    # What a packer had taken when it died, and a newer file hides, is an abandoned temporary file.
    hidden = [
        path
        for folder in root.glob("packed/*.taken")
        for path in folder.rglob("*.pt")
        if (root / path.relative_to(folder)).exists()
    ]
    shards_bytes = sum(path.stat().st_size for path in root.glob("packed/*.arrow"))
    return published_bytes(root) + shards_bytes - sum(path.stat().st_size for path in hidden)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestPackedAgainstDict = PackedAgainstDict.TestCase
TestPackedAgainstDict.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStoreAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


LIMITED = [StepKey(f"e{number % 3}", number) for number in range(9)]
SIZE = 1650  # bytes of the file of `tensor(seed)` under these keys


class StoreUnderLimit(RuleBasedStateMachine):
    """Two stores on one folder: eviction takes only what it may, and only when it must."""

    @initialize()
    def open(self):
        self.folder = tempfile.mkdtemp(prefix="vlm-cache-limit-")
        self.stores = [FeatureStore(self.folder, limit_bytes=5 * SIZE), FeatureStore(self.folder, run_id="run-0")]
        self.ended = 0
        self.values: dict[StepKey, int] = {}
        self.pinned: set[str] = set()
        self.of_run: set[StepKey] = set()

    def present(self):
        return {key for key in self.values if self.stores[0].path_of(key).exists()}

    @rule(key=st.sampled_from(LIMITED), seed=st.integers(0, 5), by=st.integers(0, 1))
    def put(self, key, seed, by):
        before = self.present()
        try:
            self.stores[by].put(key, tensor(seed))
        except StoreFull:
            held = {one for one in before if one.dataset in self.pinned or one in self.of_run}
            assert len(held - {key}) + 1 > 5
            assert self.present() == before
            return
        self.values[key] = seed
        if by == 1:
            self.of_run.add(key)
        gone = (before | {key}) - self.present()
        assert key not in gone
        assert not gone or len(before | {key}) > 5
        assert all(one.dataset not in self.pinned and one not in self.of_run for one in gone)

    @rule(key=st.sampled_from(LIMITED), by=st.integers(0, 1))
    def get(self, key, by):
        found = self.stores[by].get(key)
        assert (found is not None) == (key in self.present())
        assert found is None or torch.equal(found, tensor(self.values[key]))

    @rule(dataset=st.sampled_from(["e0", "e1"]))
    def pin(self, dataset):
        self.stores[0].pin([dataset])
        self.pinned.add(dataset)

    @rule(dataset=st.sampled_from(["e0", "e1"]))
    def unpin(self, dataset):
        assert (self.stores[0].unpin(dataset) > 0) == (dataset in self.pinned)
        self.pinned.discard(dataset)

    @rule(by=st.integers(0, 1), key=st.sampled_from(LIMITED))
    def delete(self, by, key):
        was_there = key in self.present()
        assert self.stores[by].delete(key) == was_there
        self.of_run.discard(key)

    @rule()
    def end_the_run(self):
        self.stores[1].close()
        self.of_run.clear()
        # Under the same id it would be the same run, resumed, and keep what it has.
        self.ended += 1
        self.stores[1] = FeatureStore(self.folder, run_id=f"run-{self.ended}")

    @rule()
    def compact(self):
        remove_snapshots(self.stores[0].root)
        self.stores[0].stats()

    @invariant()
    def the_limit_holds(self):
        if hasattr(self, "stores"):
            assert published_bytes(self.stores[0].root) <= 5 * SIZE

    def teardown(self):
        if hasattr(self, "stores"):
            for store in self.stores:
                store.close()
            assert self.stores[0].verify(workers=1).problems == []
            assert self.stores[0].stats().bytes == published_bytes(self.stores[0].root)
            shutil.rmtree(self.folder)


TestStoreUnderLimit = StoreUnderLimit.TestCase
TestStoreUnderLimit.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
