"""What a plan will take is told by the videos' real lengths, and where they do not tell, as an upper bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache_store import FeatureStore, int8, video_value
from pipeline.encoders import load_spec
from pipeline.size_estimate import FILE_OVERHEAD_BYTES, by_length, smallest_feature, upper_bound
from pipeline.sources import ImageFile, StepSample, VideoSample
from pipeline.vision import SamplingRule
from pipeline.vision.survey import promised_length
from pipeline.work_plan import BuildTask, plan_build
from tests.media import scramble, write_video
from tests.pipeline.test_work_plan import Listed


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store") as opened:
        yield opened


def planned(store, *samples, sampling="source", encoder="longva", nframe=16, **options):
    rule = SamplingRule.parse(sampling)
    task = BuildTask(load_spec(encoder, "small"), str(store.root), None, nframe, rule, **options)
    return plan_build(Listed(*samples), task, store, overwrite=False)


def clip(path, **bounds):
    return VideoSample("clips", path.stem, path, path.name, **bounds)


def bytes_of(plan, frames):
    return plan.task.spec.feature_bytes(frames) + FILE_OVERHEAD_BYTES


def test_steps_all_take_the_same_and_no_less_than_is_written(store):
    steps = [StepSample("ep", index, (ImageFile("left", Path("x.jpg")),), "lift") for index in range(3)]
    plan = planned(store, *steps, encoder="qwen2_5_vl")
    estimate = upper_bound(plan)
    assert (estimate.features, estimate.is_upper_bound) == (3, False)
    width = plan.task.spec.feature_bytes() // 2
    for sample in steps:
        feature = torch.zeros(1, 1, width, dtype=torch.float16)
        store.put(plan.task.key(sample), feature, recipe=plan.task.recipe(sample))
    assert estimate.bytes <= store.stats().bytes <= 2 * estimate.bytes


@pytest.mark.parametrize("encoder", ["longva", "huggingface"])
def test_int8_features_count_by_what_is_written_of_them(store, tmp_path, encoder):
    sample = clip(tmp_path / "a.mp4")
    plan = planned(store, sample, sampling="longva", encoder=encoder, store_dtype="int8")
    estimate, exact = upper_bound(plan), planned(store, sample, sampling="longva", encoder=encoder)
    features = torch.ones(plan.task.spec.feature_shape(16), dtype=torch.float16)
    entry = video_value(plan.task.key(sample), features, video_path=sample.relative_path)
    size = store.put(plan.task.key(sample), entry, recipe=plan.task.recipe(sample)).stat().st_size
    assert size - 3000 < estimate.bytes <= size
    assert estimate.bytes < 0.6 * upper_bound(exact).bytes
    assert smallest_feature(plan.task)[0] == int8.payload_bytes(plan.task.spec.feature_shape(1))


def test_short_videos_count_by_their_own_length(store, tmp_path):
    plan = planned(store, clip(write_video(tmp_path / "a.mp4", frames=5)), clip(write_video(tmp_path / "b.mkv")))
    assert upper_bound(plan).bytes == 2 * bytes_of(plan, 16)
    assert upper_bound(plan).is_upper_bound
    estimate = by_length(plan, store)
    assert (estimate.bytes, estimate.is_upper_bound) == (bytes_of(plan, 5) + bytes_of(plan, 16), False)


def test_rules_that_repeat_frames_need_no_look_at_the_files(store, tmp_path):
    plan = planned(store, clip(tmp_path / "not_there.mp4"), sampling="longva")
    assert not upper_bound(plan).is_upper_bound
    assert by_length(plan, store).bytes == upper_bound(plan).bytes


def test_clips_and_rates_count_the_frames_that_will_be_taken(store, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=24)  # 3 s at 8 frames per second
    plan = planned(store, clip(path), sampling="fps:2")
    assert by_length(plan, store).bytes == bytes_of(plan, 6)
    plan = planned(store, clip(path, start_s=0.0, end_s=1.0))
    assert bytes_of(plan, 8) <= by_length(plan, store).bytes <= bytes_of(plan, 9)


def test_a_video_that_does_not_tell_its_length_counts_in_full_and_says_so(store, tmp_path):
    plan = planned(store, clip(scramble(tmp_path / "broken.mp4")))
    estimate = by_length(plan, store)
    assert (estimate.bytes, estimate.is_upper_bound) == (bytes_of(plan, 16), True)


def test_stored_videos_count_by_their_files_and_impossible_ones_not_at_all(store, tmp_path):
    stored = clip(write_video(tmp_path / "a.mp4", frames=5))
    task = planned(store).task
    path = store.put(task.key(stored), {"vision_features": torch.zeros(5, 36, 64)}, recipe=task.recipe(stored))
    plan = planned(store, stored, clip(tmp_path / "gone.mp4", problem="no such file"))
    assert (by_length(plan, store).bytes, by_length(plan, store).features) == (path.stat().st_size, 1)


def test_the_header_promises_what_the_file_holds(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.avi"):
        frames, fps = promised_length(
            write_video(tmp_path / name, frames=10, codec="mpeg4" if "avi" in name else "libx264")
        )
        assert abs(frames - 10) <= 1
        assert fps == pytest.approx(8)
    assert promised_length(tmp_path / "nowhere.mp4") is None
