"""The plan asks the store for every sample and refuses to mix recipes; shards keep episodes whole."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_store import FeatureStore, InvalidKey, ReadOnlyStore, StepKey, VideoKey, video_value
from pipeline.encoders import load_spec
from pipeline.errors import BuildRefused, SourceChanged
from pipeline.sources import ImageFile, StepSample, VideoSample
from pipeline.sources.video_folder import VideoFolder
from pipeline.work_plan import BuildTask, Decision, Unit, plan_build, shards
from tests.media import write_video


class Listed:
    """A source of given samples."""

    def __init__(self, *samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)

    def ignored(self):
        return []


def step(vlm_idx: int, *, instruction: str = "lift", problem: str | None = None) -> StepSample:
    return StepSample("episode_1", vlm_idx, (ImageFile("left", Path("x.jpg")),), instruction, problem)


def video(name: str) -> VideoSample:
    return VideoSample("clips", name, Path(f"{name}.mp4"), f"{name}.mp4")


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store", run_id="plan") as opened:
        yield opened


@pytest.fixture
def steps(store):
    return BuildTask(load_spec("qwen2_5_vl", "small"), str(store.root), "plan")


def test_each_sample_is_built_skipped_or_impossible(store, steps):
    store.put(StepKey("episode_1", 3), torch.zeros(1, 1, 4), recipe=steps.recipe(step(3)))
    plan = plan_build(Listed(step(0), step(3), step(6, problem="no image")), steps, store, overwrite=False)
    assert list(plan.decisions) == [Decision.TODO, Decision.SKIP, Decision.FAILED]
    assert [unit.name for unit in plan.units()] == ["episode_1_vlm0"]
    assert (plan.todo, plan.skipped, plan.problems) == (1, 1, [("episode_1_vlm6", "no image")])


def test_a_step_of_another_instruction_refuses_the_build_and_names_the_difference(store, steps):
    store.put(StepKey("episode_1", 0), torch.zeros(1, 1, 4), recipe=steps.recipe(step(0, instruction="push")))
    with pytest.raises(BuildRefused, match=r"episode_1_vlm0.*instruction_sha256.*--overwrite"):
        plan_build(Listed(step(0)), steps, store, overwrite=False)
    assert plan_build(Listed(step(0)), steps, store, overwrite=True).todo == 1


def test_a_source_that_changes_stops_what_reads_it_again(store, steps):
    planned = [step(0), step(3), replace(step(0), dataset="episode_2"), replace(step(3), dataset="episode_2")]
    grown = [*planned[:2], step(6), *planned[2:]]
    for changed in (planned[:-1], planned[1:], [step(0, problem="torn"), *planned[2:]], grown):
        source = Listed(*planned)
        plan = plan_build(source, steps, store, overwrite=False)
        source.samples = changed
        with pytest.raises(SourceChanged, match="start the build again"):
            list(plan.wanted())
        with pytest.raises(SourceChanged):
            list(plan.units())
    clips = Listed(video("a"), video("b"))
    plan = plan_build(clips, BuildTask(load_spec("longva", "small"), str(store.root), None), store, overwrite=False)
    clips.samples = (video("a"), video("c"))
    with pytest.raises(SourceChanged, match="c is not what was planned"):
        list(plan.units())


def test_an_episode_of_one_step_that_can_no_longer_be_read_stops_what_reads_it_again(store, steps):
    source = Listed(step(0), replace(step(0), dataset="episode_2"))
    plan = plan_build(source, steps, store, overwrite=False)
    source.samples = (step(0), StepSample("episode_2", 0, (), "", problem="episode_2/data.pkl: torn"))
    for read in (plan.wanted, plan.units):
        with pytest.raises(SourceChanged, match=r"episode_2/data\.pkl: torn: it could be read when it was planned"):
            list(read())


def test_what_comes_behind_the_last_sample_is_the_next_builds(store, steps):
    source = Listed(step(0))
    plan = plan_build(source, steps, store, overwrite=False)
    source.samples = (step(0), step(3))
    assert [unit.name for unit in plan.units()] == ["episode_1_vlm0"]


def test_an_episode_whose_name_cannot_be_a_files_fails_alone(store, steps):
    odd = StepSample("episode@2", 0, (ImageFile("left", Path("x.jpg")),), "lift")
    plan = plan_build(Listed(odd, step(0)), steps, store, overwrite=False)
    assert list(plan.decisions) == [Decision.FAILED, Decision.TODO]
    assert "episode@2" in plan.problems[0][1]


def test_a_video_whose_name_is_no_text_fails_alone_and_a_data_set_of_such_a_name_is_refused(store):
    videos = BuildTask(load_spec("longva", "small"), str(store.root), None)
    plan = plan_build(Listed(video("a\udcff"), video("b")), videos, store, overwrite=False)
    assert list(plan.decisions) == [Decision.FAILED, Decision.TODO]
    assert "UTF-8" in plan.problems[0][1]
    with pytest.raises(InvalidKey, match="set@1"):
        plan_build(Listed(replace(video("b"), dataset="set@1")), videos, store, overwrite=False)


def test_a_step_of_the_old_scripts_is_skipped(store, steps):
    torch.save(torch.zeros(1, 1, 4), store.root / "episode_1_vlm0.pt")
    assert plan_build(Listed(step(0)), steps, store, overwrite=False).skipped == 1


def test_a_video_of_another_recipe_is_built_beside_the_first(store):
    half = BuildTask(load_spec("longva", "small", dtype="float16"), str(store.root), "plan", nframe=4)
    full = BuildTask(load_spec("longva", "small", dtype="float32"), str(store.root), "plan", nframe=4)
    key = half.key(video("a"))
    assert key == full.key(video("a"))
    first = store.put(key, {"vision_features": torch.zeros(4)}, recipe=half.recipe(video("a")))
    assert plan_build(Listed(video("a")), half, store, overwrite=False).skipped == 1
    assert plan_build(Listed(video("a")), full, store, overwrite=False).todo == 1
    second = store.put(key, {"vision_features": torch.ones(4)}, recipe=full.recipe(video("a")))
    assert first.parent.name == "clips"
    assert second.parent.name.startswith("clips@")
    assert plan_build(Listed(video("a")), half, store, overwrite=False).skipped == 1


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_an_id_that_was_another_videos_before_the_folder_grew_is_refused(tmp_path, kind):
    """With `a/clip.mp4` alone the id `clip` is that video's; once `clip.mp4` is there too, it is the latter's."""
    root = str(tmp_path / "store") if kind == "folder" else f"memory://{tmp_path.name}/store"
    task = BuildTask(load_spec("longva", "small"), root, None, nframe=4)
    write_video(tmp_path / "clips" / "a" / "clip.mp4", frames=4)
    with FeatureStore(root) as store:
        for sample in VideoFolder(tmp_path / "clips"):
            value = video_value(task.key(sample), torch.zeros(4, 1, 2), video_path=sample.relative_path)
            store.put(task.key(sample), value, recipe=task.recipe(sample))
        assert plan_build(VideoFolder(tmp_path / "clips"), task, store, overwrite=False).skipped == 1
        write_video(tmp_path / "clips" / "clip.mp4", frames=4, seed=9)
        grown = VideoFolder(tmp_path / "clips")
        for asked in (store, ReadOnlyStore(root)):
            with pytest.raises(BuildRefused, match=r"^clip\.mp4 has the id 'clip', .* of a/clip\.mp4: "):
                plan_build(grown, task, asked, overwrite=False)
        plan = plan_build(grown, task, store, overwrite=True)
        for unit in plan.units():
            value = video_value(unit.key, torch.zeros(4, 1, 2), video_path=unit.sample.relative_path)
            store.put(unit.key, value, recipe=task.recipe(unit.sample))
        assert plan_build(grown, task, store, overwrite=False).skipped == 2


def test_equal_samples_share_one_recipe_and_unequal_ones_do_not(steps):
    assert steps.recipe(step(0)) is steps.recipe(step(3))
    assert steps.recipe(step(0)) != steps.recipe(step(0, instruction="push"))


def test_a_task_survives_pickling_with_its_digest(steps):
    recipe = steps.recipe(step(0))
    assert pickle.loads(pickle.dumps(steps)).recipe(step(0)) == recipe


def test_the_key_of_a_video_holds_what_the_contract_hashes(store):
    task = BuildTask(load_spec("longva", "small"), str(store.root), "plan", nframe=7)
    assert task.key(video("a")) == VideoKey("clips", "a", 7, "3e6ed153")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30), st.integers(1, 12))
def test_shards_are_the_units_in_order_and_never_part_an_episode(runs, size):
    units = [
        Unit(f"{number}_{place}", StepKey(f"e{number}", 0), StepSample(f"e{number}", place, (), ""))
        for number, (_, length) in enumerate(runs)
        for place in range(length)
    ]
    cut = list(shards(units, size=size))
    assert [unit for shard in cut for unit in shard] == units
    homes = [{number for number, shard in enumerate(cut) if unit in shard} for unit in units]
    for _, members in groupby(zip(units, homes, strict=True), key=lambda pair: pair[0].group):
        assert len(set.union(*(home for _, home in members))) == 1
    assert all(len(shard) < size + 9 for shard in cut)


def test_videos_are_cut_at_exactly_the_size():
    units = [Unit(f"v{n}", VideoKey("clips", f"v{n}", 1, "0" * 8), video(f"v{n}")) for n in range(10)]
    assert [len(shard) for shard in shards(units, size=4)] == [4, 4, 2]
