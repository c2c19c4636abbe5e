"""Damaged videos, from a unit to its feature: whole or named, unless the build asked for what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache_store import FeatureStore, describe
from pipeline.decode_unit import DecodedUnit, decode_unit
from pipeline.encode_unit import encoded_unit, put_item
from pipeline.encoders import load_spec
from pipeline.failures import UnitFailure
from pipeline.sources import VideoSample
from pipeline.work_plan import BuildTask, Unit, unit_name
from tests.pipeline.vision.small_videos import write_video


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def task(store):
    return BuildTask(load_spec("longva", "small"), str(store.root), None, nframe=8)


def unit_of(path, task):
    sample = VideoSample("clips", path.stem, path, path.name)
    return Unit(unit_name(sample), task.key(sample), sample)


@pytest.fixture
def cut_short(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=60, width=320, height=240, options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_damaged_video_fails_by_default(cut_short, task):
    failure = decode_unit(unit_of(cut_short, task), task)
    assert isinstance(failure, UnitFailure)
    assert failure.stage == "decode"
    assert "cut short" in failure.reason


def test_a_partial_feature_says_so_in_its_file_and_lies_under_a_recipe_of_its_own(cut_short, task, store):
    allowing = replace(task, partial_frames="allow", _recipes={})
    decoded = decode_unit(unit_of(cut_short, allowing), allowing)
    assert isinstance(decoded, DecodedUnit)
    features = allowing.spec.load("cpu").encode(decoded.pixels)
    encoded = encoded_unit(decoded, features, device="cpu", encode_s=0.0)
    store.put_many([put_item(encoded, allowing)])
    key, recipe = decoded.unit.key, allowing.recipe(decoded.unit.sample)
    assert store.get(key, recipe=recipe)["shape"][0] == len(decoded.pixels)
    record = describe(store.path_of(key, recipe=recipe)).record
    assert record.recipe["frames"]["partial_frames"] == "allow"
    assert (record.provenance["partial"]["asked"], record.provenance["partial"]["got"]) == (8, 8)
    assert "cut short" in record.provenance["partial"]["error"]
    assert not store.contains(key, recipe=task.recipe(decoded.unit.sample))


def test_only_builds_that_allow_partial_frames_say_so_in_their_recipe(task, tmp_path):
    sample = VideoSample("clips", "a", tmp_path / "a.mp4", "a.mp4")
    plain, allowing = task.recipe(sample), replace(task, partial_frames="allow", _recipes={}).recipe(sample)
    assert "partial_frames" not in plain["frames"]
    assert allowing["frames"] == {**plain["frames"], "partial_frames": "allow"}


def test_a_whole_video_has_no_word_of_parts_in_its_provenance(tmp_path, task):
    decoded = decode_unit(unit_of(write_video(tmp_path / "b.mp4"), task), task)
    assert "partial" not in decoded.provenance
