"""Every real media file goes through Ray: it yields features, or it is named with its reason; nothing hangs or dies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cache_store import FeatureStore
from jobs.__main__ import main
from pipeline.sources import open_source

# What no decoder can turn into every frame that was asked for, and in which words it must be named.
BROKEN = {"decord_corrupted", "streamio_broken", "streamio_empty"}


@pytest.mark.usefixtures("local_ray")
def test_every_video_is_built_or_named(real_media, tmp_path, capsys):
    status = main(
        [
            *["build", "--source", "folder", "--data", str(real_media / "videos"), "--encoder", "longva"],
            *["--model", "small", "--nframe", "8", "--store", str(tmp_path / "store"), "--json"],
        ]
    )
    report = json.loads(capsys.readouterr().out)
    files = {path.name: path for path in (real_media / "videos").iterdir()}
    ignored = {Path(entry["path"]).name for entry in report["ignored"]}
    failed = {failure["key"]: failure for failure in report["failed"]}
    with FeatureStore(tmp_path / "store") as store:
        built = {key.video_id for key in store.keys()}
        assert store.verify().problems == []
    for name, path in files.items():
        assert (name in ignored) + (path.stem in failed) + (path.stem in built) == 1, name
    assert set(failed) == BROKEN
    assert all(failure["reason"] for failure in failed.values())
    assert report["done"] == len(built)
    assert report["restarts"] == 0
    assert status == 1


@pytest.mark.usefixtures("local_ray")
def test_video_mme_annotations_give_each_video_once(real_media, tmp_path, capsys):
    """The annotations name a missing, a broken and an audio-only video beside five good ones."""
    suffixes = ("json", "parquet", "vlmevalkit.tsv")
    files = [real_media / "annotations" / f"videomme_schema.{suffix}" for suffix in suffixes]
    sources = [open_source("video-mme", real_media, annotations=file) for file in files]
    # Their problems name questions, which the formats number in their own ways.
    listed = [[replace(sample, problem=bool(sample.problem)) for sample in source] for source in sources]
    assert listed[0] == listed[1] == listed[2]
    assert [sample.video_id for sample in listed[0] if sample.problem] != []
    annotations, store = files[0], tmp_path / "store"
    main(
        [
            *["build", "--source", "video-mme", "--data", str(real_media), "--annotations", str(annotations)],
            *["--encoder", "longva", "--model", "small", "--nframe", "8", "--store", str(store), "--json"],
        ]
    )
    report = json.loads(capsys.readouterr().out)
    with FeatureStore(store) as opened:
        built = {key.video_id for key in opened.keys()}
    assert "psd_counter" in built
    assert not any(video_id.isdecimal() for video_id in built)
    stages = {failure["key"]: failure["stage"] for failure in report["failed"]}
    assert "source" in stages.values()
    assert report["done"] == len(built)


@pytest.mark.usefixtures("local_ray")
def test_a_real_lerobot_set_builds(real_media, tmp_path, capsys):
    store = tmp_path / "store"
    data = real_media / "robots" / "lerobot_v2_robot_sim.PickNPlace"
    status = main(
        [
            *["build", "--source", "lerobot", "--data", str(data), "--dataset", "pick", "--vlm-reuse-count", "200"],
            *["--encoder", "qwen2_5_vl", "--model", "small", "--store", str(store), "--json"],
        ]
    )
    report = json.loads(capsys.readouterr().out)
    assert status == 0, report["failed"]
    # 416, 470, 470, 412 and 328 frames, one step for each 200.
    assert report["done"] == 3 + 3 + 3 + 3 + 2
    assert (store / "pick_episode_000001_vlm400.pt").is_file()
