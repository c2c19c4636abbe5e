"""A store behind a URL that is only asked answers as the one that writes, by few requests, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_store import (
    FeatureStore,
    LocalOnly,
    ReadOnlyStore,
    StepKey,
    StoreFormatError,
    VideoKey,
    absolute_root,
    is_root,
)
from cache_store.remote.lookup import RemoteLookup
from cache_store.remote.objects import open_objects
from cache_store.remote.tier import folder_of
from tests.cache_store.conftest import tensor
from tests.cache_store.remote.s3_server import s3_bucket

RECIPE, ANOTHER = {"weights": "a"}, {"weights": "b"}
STEPS = [StepKey("episode", index) for index in range(3)]
VIDEO, NONE = VideoKey("Video-MME", "v", 4, "0a1b2c3d"), StepKey("nowhere", 0)
ASKED = [(key, recipe) for key in (*STEPS, VIDEO, NONE) for recipe in (RECIPE, ANOTHER, {"weights": "c"}, None)]


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path, monkeypatch):
    """A filled root whose copies, if there are any, lie on another machine than the test."""
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "there"))
    with FeatureStore(f"memory://{tmp_path.name}/r" if request.param == "memory" else s3_bucket(monkeypatch)) as store:
        for index, key in enumerate(STEPS):
            store.put(key, tensor(index), recipe=RECIPE)
        for seed, recipe in enumerate((RECIPE, ANOTHER)):
            store.put(VIDEO, {"vision_features": tensor(seed)}, recipe=recipe)
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "here"))
    return store.location


def test_it_answers_as_the_store_and_leaves_no_trace(url, tmp_path):
    def objects():
        return sorted(info for page in open_objects(url).pages() for info in page)

    before = objects()
    looked = ReadOnlyStore(url)
    told = list(looked.states(ASKED))
    names = [entry.name for entry in looked.entries()]
    answers = [looked.record_of(STEPS[0]), looked.bytes_of(VIDEO, recipe=ANOTHER), looked.size(), looked.location]
    answers += [str(looked.mismatch_of(STEPS[0], recipe=ANOTHER)), [one.recipe for one in looked.records_of(VIDEO)]]
    assert looked.eviction_for(10**9, new_features=1).entries == looked.pinned_bytes() == 0
    assert (looked.limit_bytes, looked.pins()) == (None, [])
    assert not (tmp_path / "here").exists()
    assert objects() == before
    with FeatureStore(url) as store:
        assert told == list(store.states(ASKED)) == [looked.state_of(key, recipe=recipe) for key, recipe in ASKED]
        assert names == [entry.name for entry in store.entries()]
        also = [store.record_of(STEPS[0]), store.bytes_of(VIDEO, recipe=ANOTHER), store.size(), store.location]
        also += [str(store.mismatch_of(STEPS[0], recipe=ANOTHER)), [one.recipe for one in store.records_of(VIDEO)]]
    assert answers == also
    assert {"missing", "present", "stale"} == set(told)


def test_copies_of_this_machine_are_left_as_they_are(url, monkeypatch, tmp_path):
    with FeatureStore(url) as here:
        here.get(STEPS[0])
        monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "there"))
        with FeatureStore(url) as there:
            there.delete(STEPS[0])
        monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "here"))
        assert ReadOnlyStore(url).size()[0] == 4
        assert here.path_of(STEPS[0]).exists()
        assert here.size()[0] == 4
        assert not here.path_of(STEPS[0]).exists()


def test_recipes_of_steps_that_have_copies_are_not_asked_of_the_service(url, monkeypatch, tmp_path):
    asked = [(key, recipe) for key in STEPS for recipe in (RECIPE, ANOTHER)]
    with FeatureStore(url) as here:
        for key in STEPS:
            here.get(key)
        monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "there"))
        with FeatureStore(url) as there:
            there.put(STEPS[1], tensor(9), recipe=ANOTHER)
        monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "here"))
        looked = ReadOnlyStore(url)
        looked.size()
        before = looked.transfers.requests
        assert list(looked.states(asked)) == ["present", "stale", "stale", "present", "present", "stale"]
        assert looked.transfers.requests - before == 2  # for the one that was replaced
        assert here.path_of(STEPS[1]).exists()


@pytest.mark.parametrize("most", [1000, 2])
def test_many_keys_are_asked_one_by_one_or_by_one_listing_with_the_same_answer(url, monkeypatch, most):
    monkeypatch.setattr(RemoteLookup, "_list_above", most)
    looked = ReadOnlyStore(url)
    asked = looked.transfers.requests
    assert looked.contains_each([*STEPS, NONE, *STEPS]) == [True] * 3 + [False] + [True] * 3
    if most == 1000:
        assert looked.transfers.requests - asked == 7
    else:
        asked = looked.transfers.requests
        looked.contains_each([*STEPS, NONE, *STEPS])  # of the same moment
        assert looked.transfers.requests == asked
    records = list(looked.record_of_each([STEPS[0], NONE, STEPS[2]]))
    assert [record and record.recipe for record in records] == [RECIPE, None, RECIPE]


def test_what_leads_nowhere_and_limits_are_refused(url):
    ReadOnlyStore(url).set_limit(0)
    with pytest.raises(LocalOnly, match="size limit"):
        ReadOnlyStore(url).set_limit(10**9)
    with pytest.raises(StoreFormatError, match="nonsense"):
        ReadOnlyStore("nonsense://a")
    for ask in (FeatureStore, ReadOnlyStore, is_root, absolute_root):
        with pytest.raises(StoreFormatError, match="give the URL as text"):
            ask(Path(url))
    assert not folder_of(url, open_objects(url).service).exists()


def test_a_video_that_is_missing_costs_no_listing_of_the_whole_root(url):
    missing = VideoKey("Video-MME", "other", 4, "0a1b2c3d")
    looked = ReadOnlyStore(url)
    listed = []
    looked._objects().pages = lambda: listed.append("all") or iter(())
    assert list(looked.records_of(missing)) == []
    assert [one.recipe for one in looked.records_of(VIDEO)] == [RECIPE, ANOTHER]
    assert listed == []
