"""`prune` means the entries that meet every condition, and spares what is pinned or does not say how it was made."""

from __future__ import annotations

import pytest
import torch

from cache_store import FeatureStore, InvalidKey, StepKey, VideoKey
from cache_store.copying import copy
from cache_store.maintenance import Selection
from cache_store.pins import Protected
from tests.cache_store.conftest import tensor

SIGNATURE = "0123abcd"


def recipe(family, **more):
    return {"encoder": {"family": family, "dtype": "float16", "weights_sha256": "ab" * 32, **more}}


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path) as store:
        for index in range(2):
            store.put(StepKey("recv_1", index), tensor(index), recipe=recipe("qwen2_5_vl"))
        store.put(StepKey("recv_2", 0), tensor(5), recipe=recipe("other"))
        for layer in (-2, -1):
            video = {"vision_features": tensor(layer + 9)}
            store.put(VideoKey("Bench", "v", 8, SIGNATURE), video, recipe=recipe("longva", layer=layer))
        torch.save(tensor(7), tmp_path / "theirs_vlm0.pt")
        yield store


def pruned(store, **conditions):
    return [entry.name for entry in store.prune(**conditions, dry_run=True).deleted]


def test_data_sets_are_meant_by_name_by_recipe_and_by_pattern(store):
    folders = sorted(path.name for path in store.root.iterdir() if path.name.startswith("Bench"))
    assert len(pruned(store, datasets=["Bench"])) == 2
    (second,) = pruned(store, datasets=[folders[1]])
    assert second.startswith("Bench@")
    assert pruned(store, datasets=["recv_*"]) == ["recv_1_vlm0.pt", "recv_1_vlm1.pt", "recv_2_vlm0.pt"]
    assert pruned(store, datasets=["recv_2", "nothing"]) == ["recv_2_vlm0.pt"]
    assert pruned(store, datasets=[]) == []


def test_a_bare_string_is_refused_where_data_sets_are_expected(store, tmp_path):
    with FeatureStore(tmp_path / "target") as target:
        calls = [
            lambda: store.pin("recv_1"),
            lambda: store.prune(datasets="recv_1"),
            lambda: store.pack(datasets="recv_1"),
            lambda: store.unpack(datasets="recv_1"),
            lambda: store.reading(datasets="recv_1").__enter__(),
            lambda: list(copy(store, target, datasets="recv_1")),
        ]
        for call in calls:
            with pytest.raises(TypeError, match="'recv_1'; give a list"):
                call()
    assert store.pins() == []


def test_models_are_meant_by_whole_words_of_their_name(store):
    assert len(pruned(store, model=SIGNATURE)) == 2
    assert len(pruned(store, model="longva")) == 2
    assert len(pruned(store, model="weights abababab")) == 5
    assert pruned(store, model="long") == []
    assert pruned(store, model="other", datasets=["recv_1"]) == []


def test_videos_of_one_recipe_are_told_apart_by_signature_and_frame_count(store):
    videos = [VideoKey("Two", "v", nframe, signature) for signature in (SIGNATURE, "99999999") for nframe in (8, 16)]
    paths = [store.put(video, tensor(0), recipe=recipe("twin")).relative_to(store.root).as_posix() for video in videos]
    store.put(VideoKey("Three", "v", 8, "88888888"), tensor(0), recipe=recipe("twin"))
    assert pruned(store, model="99999999") == sorted(paths[2:])
    assert pruned(store, model=SIGNATURE, datasets=["Two"]) == sorted(paths[:2])
    assert pruned(store, model="nframe 16") == sorted(paths[1::2])
    assert len(pruned(store, model="twin")) == 5
    assert "88888888" in store.stats().datasets["Three"].models[0].model


def test_a_recipe_is_meant_by_its_first_digits(store):
    fingerprint8 = next(entry.recipe_fingerprint8 for entry in store.entries() if entry.name == "recv_2_vlm0.pt")
    assert pruned(store, recipe_fingerprint=fingerprint8) == ["recv_2_vlm0.pt"]
    assert pruned(store, recipe_fingerprint="0" * 64) == []


def test_files_that_do_not_say_how_they_were_made_are_never_meant_by_it(store):
    assert "theirs_vlm0.pt" not in pruned(store, model="longva") + pruned(store, recipe_fingerprint="0" * 8)
    assert "theirs_vlm0.pt" in pruned(store, datasets=["theirs"])


def test_pinned_entries_stay_and_are_counted_unless_told_otherwise(store):
    store.pin(["recv_1"])
    report = store.prune(datasets=["recv_*"], dry_run=True)
    assert ([entry.name for entry in report.deleted], report.pinned) == (["recv_2_vlm0.pt"], 2)
    assert len(store.prune(down_to_bytes=0, dry_run=True).deleted) == 4
    assert len(pruned(store, datasets=["recv_*"], keep_pinned=False)) == 3


def test_down_to_takes_the_least_recently_used_until_the_store_fits(store):
    for index in (0, 1):
        store.get(StepKey("recv_1", index))
    sizes = {entry.name: entry.bytes for entry in store.entries()}
    total = sum(sizes.values())
    assert pruned(store, down_to_bytes=total) == []
    names = pruned(store, down_to_bytes=total - 1, datasets=["recv_*"])
    assert names == ["recv_2_vlm0.pt"]


@pytest.mark.parametrize(
    "conditions",
    [{}, {"recipe_fingerprint": "12"}, {"recipe_fingerprint": "XYZ" * 4}, {"older_than_s": -1}, {"down_to_bytes": -5}],
)
def test_conditions_that_nothing_can_meet_are_refused(conditions):
    with pytest.raises(ValueError, match=r"clear|hex|at least 0"):
        Selection(**conditions)


def test_a_name_that_can_be_no_data_set_is_refused(store):
    with pytest.raises(InvalidKey):
        store.prune(datasets=["../x"])


def test_ages_count_from_the_last_write_and_the_last_use(store):
    def names(now_s, **conditions):
        chosen = Selection(**conditions).chosen(store._record, store.entries(), now_s, Protected([]))
        return len(chosen.entries)

    written_s = max(entry.mtime for entry in store.entries())
    used_s = max(entry.last_use for entry in store.entries())
    assert (names(written_s + 60, older_than_s=60), names(written_s, older_than_s=60)) == (6, 0)
    assert (names(used_s + 60, unused_for_s=60), names(used_s, unused_for_s=60)) == (6, 0)
