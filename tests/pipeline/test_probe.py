"""A probe measures a few units of a plan, names those that fail, and stores nothing."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import pytest

from cache_store import ReadOnlyStore
from pipeline import probe as module
from pipeline.decode_unit import decode_unit
from pipeline.encoders import load_spec
from pipeline.encoders.vision_tower import TowerEncoder
from pipeline.failures import ErrorClass
from pipeline.probe import probe_units
from pipeline.sources import ImageFile, StepSample, VideoSample
from pipeline.work_plan import BuildTask, plan_build
from tests.media import scramble, write_video
from tests.pipeline.test_work_plan import Listed


def decode_or_die(unit, task):
    """Decode as a build does, but for videos that are named after what happens to their decoder."""
    if unit.name == "crash":
        ctypes.string_at(0)
    if unit.name == "hang":
        time.sleep(600)
    return decode_unit(unit, task)


def clip(path: Path) -> VideoSample:
    return VideoSample("clips", path.stem, path, path.name)


def planned(root, *samples, encoder="longva", **options):
    task = BuildTask(load_spec(encoder, "small"), str(root), None, nframe=4, **options)
    return plan_build(Listed(*samples), task, ReadOnlyStore(root), overwrite=False)


def probed(plan, count=3, limit_s=60.0):
    return probe_units(plan, count=count, device="cpu", cpu_threads=1, limit_s=limit_s)


def test_units_are_measured_and_not_stored(tmp_path):
    videos = [clip(write_video(tmp_path / f"{number}.mp4", frames=6)) for number in range(7)]
    plan = planned(tmp_path / "store", *videos)
    found = probed(plan)
    assert [unit.key for unit in found.units] == ["1", "3", "5"]
    assert found.decode_s > 0
    assert found.encode_s > 0
    assert found.bytes > plan.task.spec.feature_bytes(4)
    assert not (tmp_path / "store").exists()


def test_int8_is_measured_as_it_would_be_stored_and_what_it_cannot_keep_is_named(tmp_path, monkeypatch):
    plan = planned(tmp_path / "store", clip(write_video(tmp_path / "a.mp4", frames=6)), store_dtype="int8")
    exact_bytes = plan.task.spec.feature_bytes(4)
    assert exact_bytes / 2 < probed(plan, count=1).bytes < 0.9 * exact_bytes
    encode = TowerEncoder.encode
    monkeypatch.setattr(TowerEncoder, "encode", lambda self, pixels: encode(self, pixels) * float("inf"))
    (failure,) = probed(plan, count=1).failed
    assert (failure.key, failure.stage) == ("a", "write")
    assert "NaN or infinity" in failure.reason


def test_more_than_there_is_and_none_at_all(tmp_path):
    plan = planned(
        tmp_path, StepSample("ep", 0, (ImageFile("left", tmp_path / "gone.jpg"),), "x"), encoder="qwen2_5_vl"
    )
    found = probed(plan, count=9)
    assert ([one.key for one in found.failed], found.units, found.decode_s) == (["ep_vlm0"], [], None)
    assert probed(planned(tmp_path)).bytes is None


def test_a_broken_video_a_crash_and_a_hang_are_named_and_the_rest_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "decode_unit", decode_or_die)
    scramble(tmp_path / "broken.mp4")
    write_video(tmp_path / "sound.mp4", frames=6)
    samples = [clip(tmp_path / f"{name}.mp4") for name in ("broken", "crash", "hang", "sound")]
    found = probed(planned(tmp_path / "store", *samples), count=4, limit_s=15.0)
    assert {one.key: one.error for one in found.failed} == {
        "broken": ErrorClass.BAD_MEDIA,
        "crash": ErrorClass.CRASH,
        "hang": ErrorClass.HANG,
    }
    assert [unit.key for unit in found.units] == ["sound"]


def test_a_model_that_refuses_a_unit_is_named_too(tmp_path, monkeypatch):
    plan = planned(tmp_path / "store", clip(write_video(tmp_path / "a.mp4")))

    class Refusing:
        def encode(self, pixels):
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(type(plan.task.spec), "load", lambda spec, device: Refusing())
    (failure,) = probed(plan).failed
    assert (failure.stage, failure.error) == ("encode", ErrorClass.OUT_OF_MEMORY)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_units_are_spread_over_the_plan(tmp_path, count):
    steps = [StepSample("ep", index, (), "x") for index in range(5)]
    chosen = module._spread(planned(tmp_path, *steps, encoder="qwen2_5_vl"), count)
    assert [unit.key.vlm_idx for unit in chosen] == {1: [2], 2: [1, 3], 5: [0, 1, 2, 3, 4]}[count]
