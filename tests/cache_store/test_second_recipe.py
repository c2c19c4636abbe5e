"""A second recipe of one video family gets a folder of its own and never overwrites the first."""

from __future__ import annotations

import json
import multiprocessing
import shutil

import pytest
import torch

from cache_store import FeatureStore, RecipeMismatch, VideoKey, opening, recipe_fingerprint
from tests.cache_store.conftest import tensor

FIRST, SECOND = {"weights": "original"}, {"weights": "fine-tuned"}
FIRST_DIGITS = recipe_fingerprint(FIRST)[:8]
FOLDER = f"Video-MME@{recipe_fingerprint(SECOND)[:8]}"


def key(video_id, nframe=8):
    return VideoKey("Video-MME", video_id, nframe, "0123abcd")


def value(seed):
    return {"vision_features": tensor(seed), "dtype": "float16"}


def seed_of(store, video, **options):
    return next(seed for seed in range(9) if torch.equal(store.get(video, **options)["vision_features"], tensor(seed)))


@pytest.mark.parametrize("lose_the_markers", [False, True])
def test_each_recipe_reads_its_own_feature_and_a_plain_reader_the_first(store, lose_the_markers):
    store.put(key("a"), value(1), recipe=FIRST)
    if lose_the_markers:
        shutil.rmtree(store.root / ".vlm-cache")
    store.put(key("a"), value(2), recipe=SECOND)
    store.put(key("b"), value(3), recipe=SECOND)
    assert store.path_of(key("a"), recipe=SECOND).parent.name == FOLDER
    assert store.path_of(key("b"), recipe=FIRST).parent.name == "Video-MME"
    assert seed_of(store, key("a")) == 1
    assert seed_of(store, key("a"), recipe=FIRST) == 1
    assert seed_of(store, key("a"), recipe=SECOND) == 2
    assert store.stats().datasets.keys() == {"Video-MME", FOLDER}


def test_a_reader_of_an_absent_recipe_is_told_what_differs_and_how_to_open_each(store):
    store.put(key("a"), value(1), recipe=FIRST)
    with pytest.raises(RecipeMismatch) as caught:
        store.get(key("a"), recipe=SECOND)
    message = str(caught.value)
    assert 'weights: found "original", wanted "fine-tuned"' in message
    assert FOLDER in message
    assert "get(key) without recipe" in message
    assert store.state_of(key("a"), recipe=SECOND) == "stale"
    assert store.get(key("a"), recipe=SECOND, on_stale="miss") is None
    assert seed_of(store, key("a"), recipe=SECOND, on_stale="use") == 1


def test_a_plain_reader_that_misses_is_told_where_another_recipe_lies(store, caplog):
    store.put(key("a"), value(1), recipe=FIRST)
    store.put(key("b"), value(2), recipe=SECOND)
    assert store.get(key("b")) is None
    assert FOLDER in caplog.text
    assert "recipe=" in caplog.text


def test_use_takes_none_of_several_second_recipes_and_is_told_where_they_lie(store, caplog):
    store.put(key("a"), value(1), recipe=FIRST)
    others = [SECOND, {"weights": "merged"}]
    for seed, recipe in enumerate(others):
        store.put(key("b"), value(seed), recipe=recipe)
    wanted = {"weights": "not built"}
    for on_stale in ("error", "miss"):
        assert store.get(key("b"), recipe=wanted, on_stale=on_stale) is None
    assert not caplog.records
    for _ in range(2):
        assert store.get(key("b"), recipe=wanted, on_stale="use") is None
    assert len(caplog.records) == 2
    for recipe in others:
        assert f"Video-MME@{recipe_fingerprint(recipe)[:8]}" in caplog.text


def test_another_frame_count_is_another_family(store):
    store.put(key("a"), value(1), recipe=FIRST)
    path = store.put(key("a", nframe=16), value(2), recipe=SECOND)
    assert path.parent.name == "Video-MME"


def _put_first(store, recipe, barrier):
    barrier.wait()
    store.put(key("a"), value(int(recipe == SECOND)), recipe=recipe)
    store.close()


def test_racing_first_recipes_get_different_folders(store):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_put_first, args=(store, r, barrier)) for r in (FIRST, SECOND)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.stats().entries == 2
    assert seed_of(store, key("a"), recipe=FIRST) == 0
    assert seed_of(store, key("a"), recipe=SECOND) == 1


def test_a_cleared_data_set_may_be_built_with_another_recipe(store):
    store.put(key("a"), value(1), recipe=FIRST)
    store.prune(datasets=["Video-MME"])
    assert store.put(key("a"), value(2), recipe=SECOND).parent.name == "Video-MME"


def test_a_damaged_marker_is_rebuilt_from_the_files(store):
    store.put(key("a"), value(1), recipe=FIRST)
    (marker,) = (store.root / ".vlm-cache" / "recipes").iterdir()
    marker.write_text("{")
    assert store.put(key("b"), value(2), recipe=SECOND).parent.name == FOLDER
    assert store.put(key("b"), value(2), recipe=FIRST).parent.name == "Video-MME"
    assert json.loads(marker.read_text())["recipe_fingerprint"] == recipe_fingerprint(FIRST)


def test_old_files_that_tell_no_recipe_are_read_once_for_all_keys_that_are_asked_about(store, monkeypatch):
    keys = [key(f"v{number}") for number in range(20)]
    for one in keys:
        store.put(one, value(1))
    read, asked = opening.read_record, []
    monkeypatch.setattr(opening, "read_record", lambda root, name: asked.append(name) or read(root, name))
    assert {store.path_of(one, recipe=FIRST).parent.name for one in keys} == {"Video-MME"}
    assert len(asked) == 20
    other = shutil.copytree(store.root, store.root.parent / "other")
    with FeatureStore(other) as there:
        there.put(key("w"), value(2), recipe=SECOND)
        shutil.copy(there.file_of(key("w"), recipe=SECOND), store.root / "Video-MME")
    assert {store.path_of(one, recipe=FIRST).parent.name for one in keys} == {f"Video-MME@{FIRST_DIGITS}"}


def test_the_records_of_a_key_are_those_of_all_its_recipes_the_plain_one_first(store):
    assert list(store.records_of(key("a"))) == []
    store.put(key("a"), value(1), recipe=FIRST)
    store.put(key("a"), value(2), recipe=SECOND)
    store.put(key("b"), value(3), recipe=SECOND)
    store.put(key("c"), value(4))
    assert [record.recipe for record in store.records_of(key("a"))] == [FIRST, SECOND]
    assert [record.recipe for record in store.records_of(key("b"))] == [SECOND]
    assert [record.recipe for record in store.records_of(key("c"))] == [None]
    assert [record.name for record in store.records_of(key("a"))] == [
        store.path_of(key("a"), recipe=recipe).relative_to(store.root).as_posix() for recipe in (FIRST, SECOND)
    ]


def test_the_records_of_a_key_are_also_those_of_second_recipes_under_other_names(open_store):
    store, alias = open_store(), VideoKey("Video-MME_128frame", "a", 8, "0123abcd")
    for seed, recipe in enumerate((FIRST, SECOND)):
        store.put(alias, value(seed), recipe=recipe)
    assert [record.recipe for record in store.records_of(key("a"))] == [FIRST, SECOND]
    assert [record.name.partition("/")[0] for record in store.records_of(key("a"))] == [
        alias.dataset,
        f"{alias.dataset}@{recipe_fingerprint(SECOND)[:8]}",
    ]
