"""Two machines on one remote root, against a dict: copies may be late, and never wrong for what is asked of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cache_store import EntryExists, FeatureStore, PutItem, RecipeMismatch, StepKey
from tests.cache_store.conftest import tensor

RECIPES = [{"weights": "a"}, {"weights": "b"}]
KEYS = [StepKey("e", 0), StepKey("e", 1), StepKey("e", 1, "0a1b2c3d"), StepKey("e_vlm1", 1)]
machines, keys, recipes = st.integers(0, 1), st.sampled_from(KEYS), st.integers(0, 1)


def value_of(key, recipe):
    """A feature is what its key and its recipe make of it."""
    return tensor(10 * KEYS.index(key) + recipe)


class MachinesAgainstDict(RuleBasedStateMachine):
    @initialize(limited=st.booleans())
    def open(self, limited):
        self.folder = Path(tempfile.mkdtemp(prefix="vlm-cache-remote-"))
        self.there: dict[StepKey, int] = {}
        self.stores = []
        for number in range(2):
            variables = {"VLM_CACHE_TIER": str(self.folder / str(number))}
            variables |= {"VLM_CACHE_TIER_LIMIT": "3500"} if limited else {}  # two copies
            with mock.patch.dict(os.environ, variables):
                self.stores.append(FeatureStore(f"memory:/{self.folder}"))

    @rule(by=machines, key=keys, recipe=recipes)
    def put(self, by, key, recipe):
        self.stores[by].put(key, value_of(key, recipe), recipe=RECIPES[recipe])
        self.there[key] = recipe

    @rule(by=machines, some=st.lists(keys, min_size=1, max_size=4, unique=True), recipe=recipes)
    def put_many(self, by, some, recipe):
        self.stores[by].put_many([PutItem(key, value_of(key, recipe), RECIPES[recipe]) for key in some])
        self.there |= dict.fromkeys(some, recipe)

    @rule(by=machines, key=keys, recipe=recipes)
    def create(self, by, key, recipe):
        try:
            self.stores[by].put(key, value_of(key, recipe), recipe=RECIPES[recipe], create_only=True)
            assert key not in self.there
            self.there[key] = recipe
        except EntryExists:
            assert key in self.there

    @rule(by=machines, key=keys)
    def delete(self, by, key):
        assert self.stores[by].delete(key) == (self.there.pop(key, None) is not None)

    @rule(by=machines, key=keys, recipe=recipes)
    def get_in_a_recipe(self, by, key, recipe):
        try:
            found = self.stores[by].get(key, recipe=RECIPES[recipe])
        except RecipeMismatch:
            assert self.there.get(key) == 1 - recipe
            return
        assert found is None or torch.equal(found, value_of(key, recipe))
        assert found is not None or key not in self.there

    @rule(by=machines, some=st.lists(keys, max_size=4, unique=True))
    def get_after_a_listing(self, by, some):
        store = self.stores[by]
        assert {entry.name for entry in store.entries()} == {store.path_of(key).relative_to(store.root).as_posix()
                                                             for key in self.there}  # fmt: skip
        for key in some:
            found = store.get(key)
            assert (found is None) == (key not in self.there)
            assert found is None or torch.equal(found, value_of(key, self.there[key]))
        batch = store.get_batch(some)
        assert batch.missing == [place for place, key in enumerate(some) if key not in self.there]
        for place, key in enumerate(some):
            assert place in batch.missing or torch.equal(batch.features[place], value_of(key, self.there[key]))

    @rule(by=machines, key=keys, recipe=recipes)
    def ask(self, by, key, recipe):
        state = "missing" if key not in self.there else "present" if self.there[key] == recipe else "stale"
        assert self.stores[by].state_of(key, recipe=RECIPES[recipe]) == state
        assert list(self.stores[by].states([(key, RECIPES[recipe])])) == [state]
        assert self.stores[by].contains(key) == (key in self.there)

    @rule(by=machines, key=keys, half=st.booleans())
    def damage_a_copy(self, by, key, half):
        path = self.stores[by].path_of(key)
        if path.exists():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if half else b"")

    @rule(by=machines)
    def lose_the_copies(self, by):
        shutil.rmtree(self.stores[by].root, ignore_errors=True)

    def teardown(self):
        if hasattr(self, "stores"):
            for store in self.stores:
                assert store.verify(workers=1).problems == []
                store.close()
            self.stores[0].clear()
            shutil.rmtree(self.folder)


TestMachinesAgainstDict = MachinesAgainstDict.TestCase
TestMachinesAgainstDict.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
