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

from cache_store import FeatureStore, StepKey, VideoKey, atomic, recipe_fingerprint
from cache_store.ledger import Ledger
from tests.cache_store.conftest import SimulatedCrash, published_bytes, tensor

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
        assert (stats.entries, stats.bytes) == (
            len(self.steps) + len(self.videos),
            published_bytes(self.store.root),
        )
        view = Ledger(self.store.root)
        view.refresh()
        assert view.total_bytes == stats.bytes

    @invariant()
    def files_are_the_truth(self):
        names = {self.store.path_of(key).name for key in self.steps}
        assert {path.name for path in self.store.root.rglob("*_vlm*.pt")} == names
        assert len(list(self.store.root.rglob("Video-MME*/*.pt"))) == len(self.videos)
        for path in self.store.root.glob("Video-MME@*"):
            assert path.name.partition("@")[2] in {recipe_fingerprint(r)[:8] for r in RECIPES[1:]}

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            assert self.store.verify().problems == []
            shutil.rmtree(self.folder)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
