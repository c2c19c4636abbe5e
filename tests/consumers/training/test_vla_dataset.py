"""Misses, mismatches, odd input and all kinds of workers: clear errors or declared fallbacks, never wrong data."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache_store import FeatureStore, RecipeMismatch, StepKey, prompt_hash
from consumers.training import (
    CacheIncomplete,
    EmptyBatch,
    FeatureMissing,
    UnifiedVLADataset,
    VLAEpisodeSet,
    unified_collate_fn,
)
from pipeline.errors import MediaError
from pipeline.recipe import with_instruction
from pipeline.sources import VLAEpisodes
from tests.consumers.training.episodes import RECIPE, feature_of, fill, write_new, write_old

STEPS = range(0, 200, 30)


@pytest.fixture
def episode(tmp_path):
    folder = tmp_path / "blue_point" / "episode_1"
    write_new(folder, sensor=None)
    return folder


@pytest.fixture
def root(tmp_path, episode):
    fill(tmp_path / "cache", "episode_1", STEPS, recipe=recipe())
    return tmp_path / "cache"


def recipe(instruction="Perform blue point insertion task.", **changes):
    return with_instruction({**RECIPE, **changes}, instruction)


def delete(root, *steps):
    with FeatureStore(root) as store:
        for step in steps:
            assert store.delete(StepKey("episode_1", step))


class TestMisses:
    def test_the_steps_are_those_that_the_build_makes(self, episode, tmp_path):
        write_old(tmp_path / "blue_point" / "recv_all_1")
        built = {(sample.dataset, sample.vlm_idx) for sample in VLAEpisodes(tmp_path / "blue_point")}
        folders = [episode, tmp_path / "blue_point" / "recv_all_1"]
        read = {(d.data_dir.name, n) for d in map(UnifiedVLADataset, folders) for n in d.vl_cache_files}
        assert read == built

    def test_images_raise_and_skip(self, episode, root):
        delete(root, 60)
        images, strict, sparse = (
            UnifiedVLADataset(episode, cache_root=root, on_miss=on_miss) for on_miss in ("images", "raise", "skip")
        )
        assert images.cache_found_count == 6
        assert images.vl_cache_files[60] is None
        assert images[6]["vl_cache"] is None
        assert len(images[6]["images"]) == 3
        with pytest.raises(FeatureMissing, match="vlm_idx=60"):
            strict[7]
        assert sparse[8] is None
        for found in (images, strict, sparse):
            assert torch.equal(found[9]["vl_cache"], feature_of("episode_1", 90))

    def test_skipped_samples_leave_the_batch_and_an_empty_batch_is_an_error(self, episode, root):
        delete(root, 60, 90)
        sparse = UnifiedVLADataset(episode, cache_root=root, on_miss="skip")
        batch = unified_collate_fn([sparse[index] for index in (5, 6, 12)])
        assert batch["vlm_indices"] == [30, 120]
        assert len(batch["actions"]) == 2
        with pytest.raises(EmptyBatch, match="none of the 2 samples"):
            unified_collate_fn([sparse[6], sparse[11]])

    def test_the_filter_leaves_out_what_was_not_cached_at_the_opening(self, episode, root):
        delete(root, 60)
        found = UnifiedVLADataset(episode, cache_root=root, filter_by_cache=True, on_miss="raise")
        assert len(found) == 20 - 3
        assert [found[index]["vlm_idx"] for index in (5, 6)] == [30, 90]
        assert found[-1]["vlm_idx"] == 180
        with pytest.raises(IndexError):
            found[17]

    def test_an_eviction_while_training_is_a_miss_of_that_step_alone(self, episode, root):
        found = UnifiedVLADataset(episode, cache_root=root)
        assert found[0]["vl_cache"] is not None
        delete(root, 0)
        assert found[0]["vl_cache"] is None
        assert len(found[0]["images"]) == 3
        assert torch.equal(found[3]["vl_cache"], feature_of("episode_1", 30))

    def test_a_damaged_file_is_a_miss(self, episode, root):
        path = root / "episode_1_vlm30.pt"
        content = bytearray(path.read_bytes())
        content[content.find(feature_of("episode_1", 30).numpy().tobytes())] ^= 1
        path.write_bytes(content)
        with pytest.raises(FeatureMissing):
            UnifiedVLADataset(episode, cache_root=root, on_miss="raise")[3]

    def test_a_cache_that_is_not_there_is_not_made(self, episode, tmp_path):
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "typo")
        assert repr(found).endswith("VL Cache: 0/7")
        assert found[0]["vl_cache"] is None
        assert "typo" in str(found.preflight())
        assert not (tmp_path / "typo").exists()


class TestRecipes:
    def test_a_cache_rebuilt_with_another_model_while_training_is_refused(self, episode, root):
        found = UnifiedVLADataset(episode, cache_root=root)
        assert found[3]["vl_cache"] is not None
        fill(root, "episode_1", [30], recipe=recipe(encoder={"model": "large"}))
        with pytest.raises(RecipeMismatch, match="large"):
            found[3]

    def test_on_stale_says_what_another_recipe_means(self, episode, root):
        missing, used = (UnifiedVLADataset(episode, cache_root=root, on_stale=means) for means in ("miss", "use"))
        fill(root, "episode_1", [30], recipe=recipe(encoder={"model": "large"}))
        assert missing[3]["vl_cache"] is None
        assert used[3]["vl_cache"] is not None

    def test_the_filter_leaves_out_another_recipe_that_is_a_miss(self, episode, root):
        fill(root, "episode_1", [60], recipe=recipe(encoder={"model": "large"}))
        options = {"cache_root": root, "on_miss": "raise", "filter_by_cache": True}
        found = UnifiedVLADataset(episode, on_stale="miss", **options)
        (again,) = VLAEpisodeSet([UnifiedVLADataset(episode, on_stale="miss", look_up=False, **options)]).episodes
        for one in (found, again):
            assert {one[index]["vlm_idx"] for index in range(len(one))} == {*STEPS} - {60}
            assert len(one) == 20 - 3
            assert str(one.preflight().require()) == "VL Cache: 6/6"
        assert len(UnifiedVLADataset(episode, on_stale="error", **options)) == 20
        assert len(UnifiedVLADataset(episode, on_stale="use", **options)) == 20
        other = UnifiedVLADataset(episode, on_stale="miss", instruction="Do it.", **options)
        assert (len(other), other.cache_found_count) == (0, 0)

    def test_another_instruction_than_the_builds_is_refused_and_can_be_used(self, episode, root):
        with pytest.raises(RecipeMismatch, match="instruction"):
            UnifiedVLADataset(episode, cache_root=root, instruction="Do it.")[0]
        assert (
            UnifiedVLADataset(episode, cache_root=root, instruction="Do it.", on_stale="use")[0]["vl_cache"] is not None
        )

    def test_a_packed_cache_is_the_same_cache(self, episode, root):
        loose = UnifiedVLADataset(episode, cache_root=root)
        was = [loose[index]["vl_cache"] for index in range(len(loose))]
        with FeatureStore(root) as store:
            store.pack()
        assert not list(root.glob("*.pt"))
        packed = UnifiedVLADataset(episode, cache_root=root, on_miss="raise")
        assert repr(packed) == repr(loose)
        assert packed.recipe == loose.recipe
        assert {path.parent for path in packed.vl_cache_files.values()} == {root / "packed"}
        assert all(path.is_file() for path in packed.vl_cache_files.values())
        assert all(torch.equal(packed[index]["vl_cache"], one) for index, one in enumerate(was))
        assert all(torch.equal(loose[index]["vl_cache"], one) for index, one in enumerate(was)), "packed while it reads"
        packed.preflight().require()
        with pytest.raises(RecipeMismatch, match="instruction"):
            UnifiedVLADataset(episode, cache_root=root, instruction="Do it.")[0]

    def test_a_recipe_of_ones_own_without_an_instruction_fits_any_and_no_other_recipe(self, episode, tmp_path):
        fill(tmp_path / "own", "episode_1", STEPS, recipe={"model": "mine"})
        fill(tmp_path / "own", "episode_1", [60], recipe={"model": "other"})
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "own", instruction="Do it.")
        assert torch.equal(found[0]["vl_cache"], feature_of("episode_1", 0))
        assert [problem.name for problem in found.preflight().mismatched] == ["episode_1_vlm60"]
        with pytest.raises(RecipeMismatch, match="other"):
            found[6]

    @pytest.mark.parametrize("more", [{}, {"images": {"decoder": "PIL"}}])
    def test_a_recipe_that_names_no_views_fits_any_views(self, episode, tmp_path, more):
        fill(tmp_path / "own", "episode_1", STEPS, recipe={"model": "mine", **more})
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "own", views_to_use=[1])
        assert torch.equal(found[0]["vl_cache"], feature_of("episode_1", 0))
        assert found.preflight().is_complete
        fill(tmp_path / "named", "episode_1", STEPS, recipe={"model": "mine", "images": {"views": ["View2"]}})
        with pytest.raises(RecipeMismatch, match=r"images\.views"):
            UnifiedVLADataset(episode, cache_root=tmp_path / "named", views_to_use=["View1"])[0]

    @pytest.mark.parametrize("on_stale", ["error", "miss", "use"])
    @pytest.mark.parametrize("in_a_set", [False, True])
    def test_of_an_episode_that_was_empty_at_the_opening_one_recipe_is_read(
        self, episode, tmp_path, on_stale, in_a_set
    ):
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "late", on_stale=on_stale)
        source = VLAEpisodeSet([found]) if in_a_set else found
        found = source.episodes[0] if in_a_set else found
        assert source[0]["vl_cache"] is None
        fill(tmp_path / "late", "episode_1", STEPS, recipe=recipe())
        fill(tmp_path / "late", "episode_1", [60], recipe=recipe(encoder={"model": "large"}))
        assert torch.equal(source[0]["vl_cache"], feature_of("episode_1", 0))
        assert found.recipe == (None if on_stale == "use" else recipe())
        if on_stale == "error":
            with pytest.raises(RecipeMismatch, match="large"):
                source[6]
        else:
            assert (source[6]["vl_cache"] is None) == (on_stale == "miss")

    @pytest.mark.parametrize("is_empty", [True, False])
    @pytest.mark.parametrize("in_a_set", [False, True])
    def test_files_without_a_recipe_hide_none_of_a_batch_and_none_that_comes_later(
        self, episode, tmp_path, is_empty, in_a_set
    ):
        def put_old(step):
            torch.save(feature_of("episode_1", step), tmp_path / "late" / f"episode_1_vlm{step}.pt")

        (tmp_path / "late").mkdir()
        if not is_empty:
            put_old(0)
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "late")
        source = VLAEpisodeSet([found]) if in_a_set else found
        found = source.episodes[0] if in_a_set else found
        put_old(0)
        put_old(60)
        assert torch.equal(source[0]["vl_cache"], feature_of("episode_1", 0))
        assert found.recipe is None
        fill(tmp_path / "late", "episode_1", [30], recipe=recipe())
        fill(tmp_path / "late", "episode_1", [90], recipe=recipe(encoder={"model": "large"}))
        assert all(sample["vl_cache"] is not None for sample in source.__getitems__([0, 3, 6]))
        assert found.recipe == recipe()
        with pytest.raises(RecipeMismatch, match="large"):
            source[9]

    def test_files_without_a_recipe_are_looked_at_once(self, episode, tmp_path, monkeypatch):
        (tmp_path / "old").mkdir()
        for step in STEPS:
            torch.save(feature_of("episode_1", step), tmp_path / "old" / f"episode_1_vlm{step}.pt")
        found, looked_at = UnifiedVLADataset(episode, cache_root=tmp_path / "old"), []

        def record_of_each(store, keys):
            looked_at.extend(keys)
            return [None] * len(keys)

        monkeypatch.setattr("cache_store.lookup.Lookup.record_of_each", record_of_each)
        for _ in range(2):
            assert all(sample["vl_cache"] is not None for sample in found.__getitems__(range(20)))
        assert [key.vlm_idx for key in looked_at] == list(STEPS)

    def test_the_first_feature_of_an_episode_that_was_empty_is_held_against_its_instruction(self, episode, tmp_path):
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "late", instruction="Do it.")
        assert found[0]["vl_cache"] is None
        fill(tmp_path / "late", "episode_1", STEPS, recipe=recipe())
        with pytest.raises(RecipeMismatch, match="instruction"):
            found[0]

    def test_features_without_a_record_fit_any_instruction(self, episode, tmp_path):
        fill(tmp_path / "old", "episode_1", [0])
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "old", instruction="Do it.")
        assert torch.equal(found[0]["vl_cache"], feature_of("episode_1", 0))

    def test_features_without_a_recipe_switch_no_check_off_whatever_their_number_and_place(self, episode, root):
        fill(root, "episode_1", [180], recipe=recipe(encoder={"model": "large"}))
        for step in (0, 30, 60, 90):
            torch.save(feature_of("episode_1", step), root / f"episode_1_vlm{step}.pt")
            found = UnifiedVLADataset(episode, cache_root=root)
            assert found.recipe == recipe()
            assert torch.equal(found[0]["vl_cache"], feature_of("episode_1", 0))
            assert [problem.name for problem in found.preflight().mismatched] == ["episode_1_vlm180"]
            with pytest.raises(RecipeMismatch, match="large"):
                found[18]

    def test_an_opening_reads_few_files_and_preflight_all_to_find_a_recipe(self, episode, root, monkeypatch):
        monkeypatch.setattr("consumers.training.coverage.MOST_READ", 3)
        for step in (0, 30, 60, 90):
            torch.save(feature_of("episode_1", step), root / f"episode_1_vlm{step}.pt")
        fill(root, "episode_1", [180], recipe=recipe(encoder={"model": "large"}))
        found = UnifiedVLADataset(episode, cache_root=root)
        assert found.recipe is None
        assert [problem.name for problem in found.preflight().mismatched] == ["episode_1_vlm180"]
        assert found.recipe == recipe()
        with pytest.raises(RecipeMismatch, match="large"):
            found[18]

    def test_features_of_other_views_than_asked_for_are_another_recipes(self, episode, root):
        for views in ([1], ["View1", "View2"], [3], ["View10", 1]):
            found = UnifiedVLADataset(episode, cache_root=root, views_to_use=views)
            with pytest.raises(RecipeMismatch, match=r"images\.views"):
                found[0]
            assert len(found.preflight().mismatched) == 7
            used = UnifiedVLADataset(episode, cache_root=root, views_to_use=views, on_stale="use")
            assert used[0]["vl_cache"] is not None
        missing = UnifiedVLADataset(episode, cache_root=root, views_to_use=[1], on_stale="miss")[0]
        assert missing["vl_cache"] is None
        assert ["images/View1/" in path for path in missing["images"]] == [True]
        for views in (None, [], [2, 1, 10], ["View2", "View10", "View1", 1]):
            found = UnifiedVLADataset(episode, cache_root=root, views_to_use=views)
            assert found.preflight().require().is_complete
            assert found[0]["vl_cache"] is not None

    def test_a_miss_has_the_views_of_the_recipe_that_the_others_have(self, episode, tmp_path):
        fill(tmp_path / "one_view", "episode_1", [0, 60], recipe=recipe(images={"views": ["View10"]}))
        missing = UnifiedVLADataset(episode, cache_root=tmp_path / "one_view")[3]
        assert ["images/View10/" in path for path in missing["images"]] == [True]
        fill(tmp_path / "no_view", "episode_1", [0, 60], recipe={"model": "mine"})
        assert len(UnifiedVLADataset(episode, cache_root=tmp_path / "no_view")[3]["images"]) == 3

    def test_the_folder_of_another_instructions_hash_is_read_with_that_instruction(self, episode, tmp_path):
        other = {"recipe": recipe("Other words."), "prompt_hash": prompt_hash("Other words.")}
        fill(tmp_path / "c", "episode_1", STEPS, **other)
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "c", prompt_hash_override=other["prompt_hash"])
        assert torch.equal(found[0]["vl_cache"], feature_of("episode_1", 0))
        assert found.preflight().is_complete
        fill(tmp_path / "c", "episode_1", [30], recipe=recipe("A third."), prompt_hash=other["prompt_hash"])
        with pytest.raises(RecipeMismatch):
            found[3]

    def test_the_instructions_folder_is_looked_in_where_the_flat_name_is_not(self, episode, tmp_path):
        digest = prompt_hash("Perform blue point insertion task.")
        fill(tmp_path / "c", "episode_1", [0, 30], prompt_hash=digest)
        fill(tmp_path / "c", "episode_1", [60], prompt_hash="0" * 8)
        found = UnifiedVLADataset(episode, cache_root=tmp_path / "c")
        assert [path and str(path.relative_to(tmp_path / "c")) for path in found.vl_cache_files.values()][:3] == [
            f"{digest}/episode_1_vlm0.pt",
            f"{digest}/episode_1_vlm30.pt",
            None,
        ]
        assert [found[index]["vl_cache"] is None for index in (0, 3, 6)] == [False, False, True]
        assert found[0]["prompt_hash"] == digest
        other = UnifiedVLADataset(episode, cache_root=tmp_path / "c", prompt_hash_override="0" * 8)
        assert [other[index]["vl_cache"] is None for index in (0, 3, 6)] == [True, True, False]
        assert other[0]["prompt_hash"] == "0" * 8


class TestPreflight:
    def test_a_whole_cache_has_no_problems(self, episode, root):
        report = UnifiedVLADataset(episode, cache_root=root).preflight()
        assert report.require().is_complete
        assert str(report) == "VL Cache: 7/7"

    def test_every_missing_and_mismatched_key_is_named(self, episode, root):
        delete(root, 60, 180)
        fill(root, "episode_1", [90], recipe=recipe(encoder={"model": "large"}))
        fill(root, "episode_1", [120], recipe=recipe("Do it."))
        report = UnifiedVLADataset(episode, cache_root=root).preflight()
        assert [problem.name for problem in report.missing] == ["episode_1_vlm60", "episode_1_vlm180"]
        assert [problem.name for problem in report.mismatched] == ["episode_1_vlm90", "episode_1_vlm120"]
        assert "large" in report.mismatched[0].reason
        with pytest.raises(CacheIncomplete, match="VL Cache: 3/7") as caught:
            report.require()
        assert pickle.loads(pickle.dumps(caught.value)).report == report

    def test_a_step_that_the_filter_left_out_is_not_needed(self, episode, root):
        delete(root, 60)
        found = UnifiedVLADataset(episode, cache_root=root, filter_by_cache=True)
        assert str(found.preflight().require()) == "VL Cache: 6/6"
        delete(root, 90)
        assert [problem.name for problem in found.preflight().missing] == ["episode_1_vlm90"]

    def test_what_is_used_in_any_recipe_is_no_mismatch(self, episode, root):
        delete(root, 60)
        fill(root, "episode_1", [90], recipe=recipe(encoder={"model": "large"}))
        found = UnifiedVLADataset(episode, cache_root=root, instruction="Do it.", on_stale="use")
        report = found.preflight()
        assert report.mismatched == ()
        assert [problem.name for problem in report.missing] == ["episode_1_vlm60"]
        missed = UnifiedVLADataset(episode, cache_root=root, instruction="Do it.", on_stale="miss")
        assert len(missed.preflight().mismatched) == 6

    def test_arrays_are_looked_at(self, episode, root):
        np.savez(episode / "robot_states.npz", robot_states=np.full((214, 12), np.nan))
        report = UnifiedVLADataset(episode, cache_root=root).preflight()
        assert [problem.name for problem in report.unreadable] == [str(episode)]

    @pytest.mark.parametrize("sensor", ["raw", "compressed", "prepared"])
    def test_rows_of_the_sensor_that_a_sample_would_stumble_over_are_named(self, tmp_path, sensor):
        folder = tmp_path / "episode_1"
        write_new(folder, sensor=sensor)
        (path,) = folder.glob("sensor_data*")
        with np.load(path) as archive:
            arrays = dict(archive)
        assert UnifiedVLADataset(folder, use_cache=False).preflight().is_complete
        row = 7 if sensor == "prepared" else 700
        arrays["data" if sensor == "prepared" else "alines"][row, -1] = np.nan
        np.savez(path, **arrays)
        (problem,) = UnifiedVLADataset(folder, use_cache=False).preflight().unreadable
        assert problem.name == str(folder)
        assert f"sensor has NaN or infinity in row {row};" in problem.reason
        assert UnifiedVLADataset(folder, use_cache=False, disable_sensor=True).preflight().is_complete

    def test_a_compressed_sensor_that_was_damaged_is_named(self, tmp_path):
        folder = tmp_path / "episode_1"
        write_new(folder, sensor="compressed")
        path = folder / "sensor_data.npz"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        (problem,) = UnifiedVLADataset(folder, use_cache=False).preflight().unreadable
        assert "sensor_data.npz cannot be read" in problem.reason

    @pytest.mark.parametrize("write", [write_old, write_new])
    def test_robot_states_are_looked_at_as_far_as_samples_need_them(self, tmp_path, write):
        folder = tmp_path / "recv_all_1"
        write(folder)
        states = np.ones((40, 12) if write is write_old else (214, 12))
        poses = np.ones((len(states), 6))
        states[-1, 0] = np.nan
        np.savez(folder / "robot_states.npz", robot_states=states, poses=poses)
        near, far = (UnifiedVLADataset(folder, use_cache=False, robot_window_size=size) for size in (5, 100))
        assert near.preflight().is_complete
        assert all(near[index]["has_robot_states"] for index in range(len(near)))
        (problem,) = far.preflight().unreadable
        assert f"robot's state has NaN or infinity in row {len(states) - 1};" in problem.reason
        with pytest.raises(MediaError, match="robot's state has NaN"):
            far[len(far) - 1]
        disabled = UnifiedVLADataset(folder, use_cache=False, disable_robot_state=True)
        assert disabled.preflight().is_complete

    def test_arrays_of_samples_that_the_filter_left_out_are_not_needed(self, tmp_path):
        folder = tmp_path / "recv_all_1"
        sensor = np.zeros((40, 1026), np.float32)
        sensor[20] = np.inf
        write_old(folder, sensor=sensor)
        fill(tmp_path / "cache", "recv_all_1", [3, 24])
        options = {"cache_root": tmp_path / "cache", "sensor_window_size": 10, "filter_by_cache": True}
        assert UnifiedVLADataset(folder, **options).preflight().is_complete
        (problem,) = UnifiedVLADataset(folder, **{**options, "sensor_window_size": 16}).preflight().unreadable
        assert "row 20" in problem.reason


class TestOddInput:
    def test_a_malicious_pickle_runs_nothing_and_is_named(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch '{tmp_path}/it ran'",)

        write_old(tmp_path / "recv_all_1", note=Hostile())
        with pytest.raises(MediaError, match=r"recv_all_1.*system"):
            UnifiedVLADataset(tmp_path / "recv_all_1")
        assert not (tmp_path / "it ran").exists()

    def test_missing_views_are_named(self, episode):
        with pytest.raises(MediaError, match="no view View9; this episode has View1, View10, View2"):
            UnifiedVLADataset(episode, use_cache=False, views_to_use=["View9"])[0]
        shutil.rmtree(episode / "images" / "View2")
        with pytest.raises(MediaError, match=r"episode_1.*lists the views View2"):
            UnifiedVLADataset(episode, use_cache=False)[0]

    def test_views_are_chosen_by_name_or_by_whole_number(self, episode):
        for wanted in (["View1"], [1]):
            sample = UnifiedVLADataset(episode, use_cache=False, views_to_use=wanted)[0]
            assert ["images/View1/" in path for path in sample["images"]] == [True]

    def test_an_episode_without_images_serves_hits_and_refuses_misses(self, episode, root, tmp_path):
        shutil.rmtree(episode / "images")
        (episode / "metadata.json").write_text("{}")
        found = UnifiedVLADataset(episode, cache_root=root)
        delete(root, 30)
        assert found[0]["vl_cache"] is not None
        assert np.isnan(found[0]["timestamp"])
        with pytest.raises(MediaError, match="no feature of step 30, and the episode has no images"):
            found[3]
        write_old(tmp_path / "recv_all_1", image=None)
        with pytest.raises(MediaError, match="no images"):
            UnifiedVLADataset(tmp_path / "recv_all_1", use_cache=False)[0]

    @pytest.mark.parametrize("where", ["npz", "csv"])
    def test_nan_poses_are_an_error_of_the_samples_that_use_them(self, tmp_path, where):
        arrays = write_new(tmp_path / "episode_1", sensor=None, states=where)
        path = tmp_path / "episode_1" / f"robot_states.{where}"
        arrays["robot_states"][210, 8] = np.nan
        if where == "npz":
            np.savez(path, robot_states=arrays["robot_states"])
        else:
            lines = path.read_text().splitlines()
            lines[211] = "0," + ",".join(map(repr, arrays["robot_states"][210].tolist()))
            path.write_text("\n".join(lines))
        found = UnifiedVLADataset(tmp_path / "episode_1", use_cache=False)
        assert found[2] is not None
        with pytest.raises(MediaError, match=r"episode_1: the robot's state has NaN"):
            found[19]
        short = UnifiedVLADataset(tmp_path / "episode_1", use_cache=False, disable_robot_state=True)
        assert torch.isfinite(short[19]["actions"]).all()  # the robot stands still by then

    def test_nan_in_the_middle_reaches_no_action(self, tmp_path):
        arrays = write_new(tmp_path / "episode_1", sensor=None)
        arrays["robot_states"][100, 11] = np.nan
        np.savez(tmp_path / "episode_1" / "robot_states.npz", robot_states=arrays["robot_states"])
        found = UnifiedVLADataset(tmp_path / "episode_1", use_cache=False, disable_robot_state=True, horizon=2)
        assert found[7] is not None
        for sample in (8, 9, 10):
            with pytest.raises(MediaError, match="a pose"):
                found[sample]

    def test_actions_in_no_window_of_a_sample_that_is_left_are_not_needed(self, tmp_path):
        folder = tmp_path / "recv_all_1"
        write_old(folder)  # 32 samples of 40 rows

        def damage(row):
            write_old(folder)
            data = pickle.loads((folder / "data.pkl").read_bytes())
            data["action"][row, 6] = np.nan
            (folder / "data.pkl").write_bytes(pickle.dumps(data))

        fill(tmp_path / "cache", "recv_all_1", [0, 3, 21])
        options = {"cache_root": tmp_path / "cache", "disable_sensor": True, "disable_robot_state": True}
        for row, is_needed, is_needed_of_cached in ((39, False, False), (38, True, False), (13, True, False)):
            damage(row)
            whole = UnifiedVLADataset(folder, **options, use_cache=False)
            cached = UnifiedVLADataset(folder, **options, filter_by_cache=True)
            assert bool(whole.preflight().unreadable) == is_needed
            assert bool(cached.preflight().unreadable) == is_needed_of_cached
        for row in (12, 30):
            damage(row)
            assert UnifiedVLADataset(folder, **options, filter_by_cache=True).preflight().unreadable

    def test_a_disabled_array_is_not_opened_and_may_be_damaged(self, tmp_path):
        new, old = tmp_path / "episode_1", tmp_path / "recv_all_1"
        write_new(new)
        write_old(old, sensor=np.zeros((40, 3)))
        for path in (new / "sensor_data_1762725445.npz", old / "robot_states.npz"):
            path.write_bytes(path.read_bytes()[:1000])
        for folder, said in ((new, "sensor_data_1762725445.npz"), (old, "sensor_data must be")):
            with pytest.raises(MediaError, match=said):
                UnifiedVLADataset(folder, use_cache=False)[0]
        with pytest.raises(MediaError, match="robot_states"):
            UnifiedVLADataset(old, use_cache=False, disable_sensor=True)[0]
        fill(tmp_path / "cache", "episode_1", STEPS)
        options = {"cache_root": tmp_path / "cache", "disable_sensor": True}
        for found in (UnifiedVLADataset(new, **options), UnifiedVLADataset(old, disable_robot_state=True, **options)):
            assert found.preflight().unreadable == ()
            assert found[0]["has_sensor"] is False
            assert found[0]["sensor_data"].shape == (65, 1026)
            assert not found[0]["sensor_data"].any()
        assert found[0]["has_robot_states"] is False

    def test_a_horizon_longer_than_the_episode_has_no_samples(self, tmp_path):
        write_old(tmp_path / "recv_all_1", rows=6)
        write_new(tmp_path / "episode_1", poses=19, sensor=None)
        found = [UnifiedVLADataset(tmp_path / name) for name in ("recv_all_1", "episode_1")]
        assert [len(one) for one in found] == [0, 0]
        assert [one.preflight().needed for one in found] == [0, 0]
        write_new(tmp_path / "episode_2", poses=40, sensor=None)
        sample = UnifiedVLADataset(tmp_path / "episode_2", horizon=50, use_cache=False)[1]
        assert sample["actions"].tolist() == [[0.0] * 6 + [1.0]] * 50

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"alines": np.zeros((9, 1025)), "forces": np.zeros(8)}, r"\[9, 1025\] and forces \[8\]"),
            ({"alines": np.zeros((9, 1024)), "forces": np.zeros(9)}, r"\[9, 1024\]"),
            ({"alines": np.zeros((9, 1025)), "forces": np.zeros((9, 2))}, r"forces \[9, 2\]"),
            ({"data": np.zeros((3, 65, 1026))}, "each of 20 samples"),
            ({"data": np.zeros((20, 1026))}, r"data is \[20, 1026\]"),
            ({"readings": np.zeros(9)}, "neither alines and forces nor data"),
        ],
    )
    def test_sensors_of_unequal_lengths_or_wrong_shapes_are_named(self, episode, arrays, said):
        np.savez(episode / "sensor_data.npz", timestamps=np.zeros(9), **arrays)
        with pytest.raises(MediaError, match=said):
            UnifiedVLADataset(episode, use_cache=False)[0]

    @pytest.mark.parametrize(
        ("sensor", "said"),
        [
            (np.zeros((40, 1025)), r"\[40, 1025\]"),
            ({"fpi": np.zeros((40, 1025)), "force": np.zeros((39, 1))}, "stacked"),
            ({"fpi": np.zeros((40, 1024)), "force": np.zeros((40, 2))}, "stacked"),  # 1026 wide, and no sensor's
            ({"fpi": np.zeros((40, 1025))}, "force"),
        ],
    )
    def test_old_sensors_of_wrong_shapes_are_named(self, tmp_path, sensor, said):
        write_old(tmp_path / "recv_all_1", sensor=sensor)
        with pytest.raises(MediaError, match=said):
            UnifiedVLADataset(tmp_path / "recv_all_1", use_cache=False)[0]

    def test_a_separate_sensor_of_another_length_gives_way_to_the_recorded_one(self, tmp_path, caplog):
        write_old(tmp_path / "recv_all_1", sensor=np.ones((40, 1026)))
        np.save(tmp_path / "recv_all_1" / "sensor_data.npy", np.zeros((39, 1026)))
        assert UnifiedVLADataset(tmp_path / "recv_all_1", use_cache=False)[0]["sensor_data"][:40].all()
        assert "data.pkl's sensor is taken" in caplog.text
        write_old(tmp_path / "recv_all_1", sensor=None)
        with pytest.raises(MediaError, match=r"\[39, 1026\]"):
            UnifiedVLADataset(tmp_path / "recv_all_1", use_cache=False)[0]

    def test_what_is_no_episode_or_no_option_is_refused(self, tmp_path, episode):
        with pytest.raises(MediaError, match="no episode"):
            UnifiedVLADataset(tmp_path)
        with pytest.raises(ValueError, match=r"^on_miss is 'zeros'; give 'images' or 'raise' or 'skip'$"):
            UnifiedVLADataset(episode, on_miss="zeros")
        with pytest.raises(ValueError, match=r"^on_stale is 'new'; give"):
            UnifiedVLADataset(episode, on_stale="new")
        with pytest.raises(ValueError, match=r"^format is 'newer'; give"):
            UnifiedVLADataset(episode, "newer")
        for options in ({"horizon": 0}, {"action_expert_hz": float("nan")}, {"action_expert_hz": float("inf")}):
            with pytest.raises(ValueError, match="above 0"):
                UnifiedVLADataset(episode, **options)
        for name in ("horizon", "vlm_reuse_count", "sensor_window_size", "robot_window_size"):
            with pytest.raises(ValueError, match=f"{name} must be a whole number, got 2.5"):
                UnifiedVLADataset(episode, **{name: 2.5})
        with pytest.raises(ValueError, match="action_expert_hz must be a number, got '10'"):
            UnifiedVLADataset(episode, action_expert_hz="10")
        with pytest.raises(TypeError, match=r"views_to_use is 'View1'; give a list: \['View1'\]"):
            UnifiedVLADataset(episode, views_to_use="View1")
        (episode / "robot_states.npz").unlink()
        with pytest.raises(MediaError, match=r"episode_1.*neither robot_states"):
            UnifiedVLADataset(episode)

    def test_rates_of_the_metadata_are_used(self, tmp_path):
        write_new(tmp_path / "episode_1", sensor=None)
        (tmp_path / "episode_1" / "metadata.json").write_text(json.dumps({"robot_hz": 50}))
        assert [*UnifiedVLADataset(tmp_path / "episode_1").vl_cache_files][:3] == [0, 15, 30]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_every_kind_return_every_sample_in_order(episode, root, context):
    found = UnifiedVLADataset(episode, cache_root=root)
    assert found[0]["vl_cache"] is not None  # what is open by now stays here
    loader = DataLoader(
        found, batch_size=6, num_workers=2, collate_fn=unified_collate_fn, multiprocessing_context=context
    )
    batches = list(loader)
    assert [step for batch in batches for step in batch["vlm_indices"]] == [n // 3 * 30 for n in range(20)]
    for batch in batches:
        for feature, step in zip(batch["vl_cache"], batch["vlm_indices"], strict=True):
            assert torch.equal(feature, feature_of("episode_1", step))


def test_opening_opens_nothing_and_a_used_copy_is_small(episode, root):
    before = os.listdir("/proc/self/fd")
    found = UnifiedVLADataset(episode, cache_root=root)
    assert os.listdir("/proc/self/fd") == before
    size = len(pickle.dumps(found))
    found[0]
    assert len(pickle.dumps(found)) == size < 10_000


def sent(episode, features):
    """The features of a batch behind the pickling that brings it from a worker."""
    samples = UnifiedVLADataset(episode, use_cache=False).__getitems__(range(len(features)))
    for sample, feature in zip(samples, features, strict=True):
        sample["vl_cache"] = feature
    arrived = pickle.loads(pickle.dumps(unified_collate_fn(samples)))["vl_cache"]
    assert type(arrived) is list
    return arrived


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_features_of_a_batch_travel_as_one_tensor(episode, dtype):
    bits = torch.tensor([[0.0, -0.0, float("nan"), 1e-7], [float("inf"), 3.0, -1.5, 1e4]], dtype=dtype)
    first, second = bits.reshape(2, 1, 1, 4).unbind()
    arrived = sent(episode, [first, None, second, first])
    assert arrived[1] is None
    assert arrived[3] is arrived[0]
    assert arrived[0].untyped_storage().data_ptr() == arrived[2].untyped_storage().data_ptr()
    for feature, found in zip((first, second), (arrived[0], arrived[2]), strict=True):
        assert found.dtype == dtype
        assert found.shape == (1, 1, 4)
        assert torch.equal(found.view(torch.uint8), feature.view(torch.uint8))


@pytest.mark.parametrize(
    "features",
    [
        [torch.zeros(1, 1, 4), torch.ones(1, 2, 4)],
        [torch.zeros(1, 1, 4), torch.ones(1, 1, 4).half()],
        [torch.zeros(1, 1, 4), {"hidden": torch.ones(1, 1, 4)}],
        [torch.zeros(1, 4, dtype=torch.int8), torch.ones(1, 4, dtype=torch.int8)],
    ],
    ids=["shapes", "dtypes", "a dict", "whole numbers"],
)
def test_features_that_are_not_alike_travel_as_they_are(episode, features):
    for feature, found in zip(features, sent(episode, features), strict=True):
        torch.testing.assert_close(found, feature, rtol=0, atol=0)
    assert sent(episode, [None, None]) == [None, None]


def test_each_feature_of_a_batch_is_read_once(episode, root):
    found = UnifiedVLADataset(episode, cache_root=root)
    samples = found.__getitems__([0, 1, 2, 9])
    assert [sample["vlm_idx"] for sample in samples] == [0, 0, 0, 90]
    found.reader._store.close()
    with FeatureStore(root) as store:
        assert store.stats().hits == 2


def test_real_robot_episodes_are_samples(real_media, tmp_path):
    """Recordings of a real robot, in the old format: their own images, instructions and actions come out."""
    recorded = sorted((real_media / "robots" / "raw_episodes_bridge").iterdir())
    assert recorded
    for folder in recorded:
        told = json.loads((folder / "episode.json").read_text())
        views = {path.name: sorted(map(str, path.iterdir())) for path in (folder / "images").iterdir()}
        data = {"action": np.array(told["actions"]), "image": views, "instruction": told["instruction"]}
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "data.pkl").write_bytes(pickle.dumps(data))
        found = UnifiedVLADataset(tmp_path / folder.name, use_cache=False, horizon=2)
        assert len(found) == told["n_steps"] - 2
        for number, sample in enumerate(found):
            assert sample["instruction"] == told["instruction"]
            assert [os.path.isfile(path) for path in sample["images"]] == [True] * len(views)
            moving = number < told["n_steps"] - 5
            assert np.allclose(sample["actions"][0, :6], np.array(told["actions"])[number, :6] * moving)
