"""A remote root answers what a folder with the same history answers, whichever copies lie on this machine."""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import replace

import pytest
import torch

from cache_store import (
    FeatureStore,
    InexactFeature,
    ReadOnlyStore,
    RecipeMismatch,
    StepKey,
    VideoKey,
    int8,
    known_aliases,
    recipe_fingerprint,
)
from tests.cache_store.remote.s3_server import s3_bucket

VIDEO = VideoKey("Video-MME", "v", 2, "0a1b2c3d")
ALIAS = replace(VIDEO, dataset=known_aliases("Video-MME")[0])
OTHER = replace(VIDEO, video_id="w")
FIRST, SECOND = {"weights": "a"}, {"weights": "b"}
INT8 = {**FIRST, int8.RECIPE_FIELD: dict(int8.STORAGE)}


def value(number):
    return {"vision_features": torch.full((2, 3, 16), float(number)).half(), "dtype": "float16"}


def number_in(found):
    return None if found is None else round(found["vision_features"].float().mean().item(), 2)


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    return f"memory://{tmp_path.name}/store"


@pytest.fixture
def s3(url, monkeypatch):
    return f"{s3_bucket(monkeypatch)}/store"


@pytest.fixture(params=["folder", "url"])
def root(request, tmp_path):
    return tmp_path / "folder" if request.param == "folder" else request.getfixturevalue(request.param)


@pytest.fixture
def store(root):
    with FeatureStore(root) as opened:
        yield opened
        assert opened.verify().problems == []


def lose_copies(store):
    if store.location != str(store.root):
        shutil.rmtree(store.root, ignore_errors=True)


def test_an_owner_that_has_a_folder_of_its_own_puts_and_deletes_there(store):
    folder = f"{VIDEO.dataset}@{recipe_fingerprint(SECOND)[:8]}"
    assert store.put(VIDEO, value(2), recipe=SECOND, is_second=True).parent.name == folder
    store.put(OTHER, value(4), recipe=SECOND)
    path = store.put(VIDEO, value(5), recipe=SECOND)
    assert path == store.path_of(VIDEO, recipe=SECOND)
    assert (path.parent.name, store.path_of(OTHER, recipe=SECOND).parent.name) == (folder, VIDEO.dataset)
    assert number_in(store.get(VIDEO, recipe=SECOND)) == 5
    assert store.delete(VIDEO, recipe=SECOND)
    assert not store.contains(VIDEO, recipe=SECOND)


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_recipe_reads_its_own_feature_where_the_plain_one_tells_none(store, is_batch):
    store.put(OTHER, value(1), recipe=FIRST)
    store.put(VIDEO, value(2))
    store.put(VIDEO, value(6), recipe=SECOND)
    lose_copies(store)
    assert number_in(store.get(VIDEO)) == 2
    if is_batch:
        assert store.get_batch([VIDEO], recipe=SECOND).features.mean() == 6
    else:
        assert number_in(store.get(VIDEO, recipe=SECOND)) == 6


def test_the_record_of_what_a_plain_reader_finds_comes_first(store):
    for number, recipe in enumerate((FIRST, SECOND)):
        store.put(VIDEO, value(number), recipe=recipe)
    lose_copies(store)
    store.get(VIDEO, recipe=SECOND)
    assert [record.recipe for record in store.records_of(VIDEO)] == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("root", "width"), [("folder", 16), ("url", 16), ("url", 1 << 15), ("s3", 1 << 15)], indirect=["root"]
)
def test_int8_that_lost_its_recipe_is_not_present_for_exact_recipes(store, width, tmp_path):
    lost = tmp_path / "lost.pt"
    with FeatureStore(tmp_path / "before") as before:
        feature = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1)).half()
        torch.save(torch.load(before.put(VIDEO, {"vision_features": feature}, recipe=INT8), weights_only=True), lost)
    store.adopt(lost, VIDEO)
    for asked in (store, ReadOnlyStore(store.location)):
        assert [asked.state_of(VIDEO, recipe=recipe) for recipe in (FIRST, INT8)] == ["stale", "present"]
        assert list(asked.states([(VIDEO, FIRST), (VIDEO, INT8)])) == ["stale", "present"]
        assert isinstance(asked.mismatch_of(VIDEO, recipe=FIRST), RecipeMismatch)
    with pytest.raises(InexactFeature):
        store.get(VIDEO, recipe=FIRST)


@pytest.mark.parametrize("limit", ["", "10"])
def test_an_exact_feature_is_found_behind_an_int8_one(store, limit, monkeypatch):
    store.put(VIDEO, value(1), recipe=INT8)
    store.put(ALIAS, value(2), recipe=SECOND)
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", limit)
    with FeatureStore(store.location) as opened:
        assert number_in(opened.get(VIDEO, exact=True)) == 2


def test_what_int8_cost_is_told_of_what_has_copies_here(url, tmp_path):
    told = []
    with FeatureStore(tmp_path / "folder") as folder, FeatureStore(url) as remote:
        for store in (folder, remote):
            for number, key in enumerate((VIDEO, OTHER)):
                feature = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(number)).half()
                store.put(key, {"vision_features": feature}, recipe=INT8)
        for keys in ((), (VIDEO,), (OTHER,)):
            for key in keys:
                remote.get(key)
            found = remote.stats().datasets[VIDEO.dataset]
            told.append((found.int8 and found.int8.entries, found.int8_untold))
        assert told == [(None, 2), (1, 1), (2, 0)]
        assert found.int8 == folder.stats().datasets[VIDEO.dataset].int8


class Histories:
    """Random requests, the same of two stores."""

    keys = (VIDEO, OTHER, ALIAS, StepKey("episode", 0), StepKey("episode", 1))
    recipes = (None, FIRST, SECOND, INT8)
    operations = ("put", "put", "put", "put_second", "get", "get", "get_exact", "get_batch", "delete", "states",
                  "entries", "keys_of", "prune", "path", "records", "lose_copies")  # fmt: skip

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.log = []

    def draw(self):
        """The next request, to be asked of each store."""
        key, recipe = self.random.choice(self.keys), self.random.choice(self.recipes)
        operation, on_stale = self.random.choice(self.operations), self.random.choice(("error", "miss", "use"))
        self.log.append((operation, key, json.dumps(recipe), on_stale))
        return lambda store: getattr(self, operation)(store, key, recipe, on_stale)

    def put(self, store, key, recipe, _, **options):
        # The names of one data set hold one feature under one recipe.
        number = 10 * self.recipes.index(recipe) + (key.vlm_idx if isinstance(key, StepKey) else ord(key.video_id[0]))
        return store.put(key, value(number), recipe=recipe, **options).relative_to(store.root)

    def put_second(self, store, key, recipe, _):
        return self.put(store, key, recipe, _, is_second=True)

    def get(self, store, key, recipe, on_stale, **options):
        return number_in(store.get(key, recipe=recipe, on_stale=on_stale, **options))

    def get_exact(self, store, key, recipe, on_stale):
        return self.get(store, key, recipe, on_stale, exact=True)

    def get_batch(self, store, key, recipe, on_stale):
        batch = store.get_batch([key], recipe=recipe, on_stale=on_stale)
        return batch.missing or batch.features.float().mean().item()

    def delete(self, store, key, recipe, _):
        return store.delete(key, recipe=recipe)

    def states(self, store, key, recipe, _):
        return store.state_of(key, recipe=recipe), list(store.states([(key, recipe)])), store.contains(key)

    def entries(self, store, *_):
        return [(entry.name, entry.bytes) for entry in store.entries()]

    def keys_of(self, store, *_):
        return sorted(map(str, store.keys()))

    def prune(self, store, key, *_):
        return [entry.name for entry in store.prune(datasets=[key.dataset]).deleted]

    def path(self, store, key, recipe, _):
        path = store.path_of(key, recipe=recipe)
        return path.relative_to(store.root), store.bytes_of(key, recipe=recipe)

    def records(self, store, key, *_):
        return [record.recipe for record in store.records_of(key)] if isinstance(key, VideoKey) else None

    def lose_copies(self, store, *_):
        lose_copies(store)


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_are_answered_alike(seed, url, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    histories = Histories(seed)
    with FeatureStore(tmp_path / "folder") as folder, FeatureStore(url) as remote:
        for _ in range(40):
            ask, answers = histories.draw(), []
            for store in (folder, remote):
                try:
                    answers.append(ask(store))
                except (RecipeMismatch, InexactFeature) as exc:
                    answers.append(type(exc))
            assert answers[0] == answers[1], histories.log
        assert remote.verify().problems == []
