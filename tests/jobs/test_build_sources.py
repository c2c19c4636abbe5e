"""A benchmark in an archive behind a URL goes through Ray: each clip once, a missing video named, a row a question."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

import pyarrow.parquet
import pytest

from cache_store import FeatureStore
from jobs.__main__ import main
from jobs.arguments import make_parser
from jobs.build_request import plan_title, tell_of_other_folders
from pipeline.encoders import load_spec
from pipeline.sources import parse_media_path
from tests.media import write_video
from tests.pipeline.sources.files import write_rows

ENCODER = ("--encoder", "longva", "--model", "small", "--nframe", "4")


@pytest.mark.usefixtures("local_ray")
def test_clips_of_a_benchmark_behind_a_url(tmp_path, capsys):
    video = write_video(tmp_path / "whole.mp4", frames=24)  # at 8 frames a second
    rows = [
        {"video": "whole.mp4", "start": 0.0, "end": 1.0},
        {"video": "whole.mp4", "start": 1.5, "end": 2.5},
        {"video": "whole.mp4", "start": 0.0, "end": 1.0},
        {"video": "gone.mp4", "start": 0.0, "end": 1.0},
    ]
    annotations = write_rows(tmp_path / "action_sequence.json", [{**row, "question": "What?"} for row in rows])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(video, "video/star/Charades_v1_480/whole.mp4")
        archive.write(annotations, "json/action_sequence.json")
    where = ["--data", f"zip://::file://{tmp_path / 'set.zip'}", "--store", str(tmp_path / "store")]
    report_folder = tmp_path / "report"
    arguments = ["build", "--source", "MVBench", *where, *ENCODER, "--report", str(report_folder), "--json"]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    (failure,) = report["failed"]
    folder = "video/star/Charades_v1_480/"
    assert (report["done"], failure["key"], failure["stage"]) == (2, f"{folder}gone@0-1", "source")
    with FeatureStore(tmp_path / "store") as store:
        assert {key.dataset for key in store.keys()} == {"MVBench"}
        assert sorted(key.video_id for key in store.keys()) == [f"{folder}whole@0-1", f"{folder}whole@1.5-2.5"]
        assert store.verify().problems == []
    questions = pyarrow.parquet.read_table(report_folder / "questions.parquet").to_pylist()
    assert [row["video_id"] for row in questions] == [
        f"{folder}{clip}" for clip in ("whole@0-1", "whole@1.5-2.5", "whole@0-1", "gone@0-1")
    ]
    assert [row["problem"] for row in questions] == [None, None, None, failure["reason"]]
    again = tmp_path / "again"
    assert main(["retry-failed", str(report_folder), "--report", str(again), "--json"]) == 1
    assert [one["key"] for one in json.loads(capsys.readouterr().out)["failed"]] == [failure["key"]]
    assert pyarrow.parquet.read_table(again / "questions.parquet").to_pylist() == questions


@pytest.mark.parametrize("spelled", ["long-video-bench", "longvideobench", "LongVideoBench", "long_video_bench"])
def test_a_benchmark_may_be_spelled_as_its_harness_does(spelled):
    arguments = ["build", "--source", spelled, "--data", "x", "--encoder", "longva", "--model", "small", "--store", "s"]
    assert make_parser().parse_args(arguments).source == "long-video-bench"


VIDEOS = {"source": "folder", "data": "/a/videos", "encoder": "longva", "dataset": None, "nframe": 8}
ARM = {**VIDEOS, "source": "lerobot", "encoder": "qwen2_5_vl"}
EPISODES = {**ARM, "source": "vla"}


@pytest.mark.parametrize(
    ("before", "changes", "is_told"),
    [
        (VIDEOS, {"data": "/b/videos"}, True),
        (VIDEOS, {"data": "s3://bucket/videos"}, True),
        (VIDEOS, {"data": "/a/videos"}, False),
        (VIDEOS, {"data": "/b/other"}, False),
        (VIDEOS, {"data": "/b/other", "dataset": "videos"}, True),
        (VIDEOS, {"data": "/b/videos", "dataset": "other"}, False),
        ({**VIDEOS, "dataset": "one"}, {"data": "/b/videos"}, True),
        (VIDEOS, {"data": "/b/videos", "nframe": 4}, False),  # what is there of that many frames, no other made
        (VIDEOS, {"data": "/b/videos", "source": "lerobot"}, False),  # its names are episodes'
        (VIDEOS, {"data": "/b/videos", "source": "video-mme"}, False),  # its name is the benchmark's
        (ARM, {"data": "/b/videos"}, True),
        (ARM, {"data": "/b/other"}, False),
        (EPISODES, {"data": "/b/other"}, True),
        (EPISODES, {"data": "/a/videos"}, False),
    ],
)
def test_features_that_another_folder_of_the_same_name_made_are_told_of(tmp_path, capsys, before, changes, is_told):
    def asked(**facts):
        return argparse.Namespace(**{**facts, "data": parse_media_path(facts["data"])})

    now = asked(**{**before, **changes})
    with FeatureStore(tmp_path / "store") as store:
        store.remember_plan("a title of another kind", [])
        store.remember_plan(plan_title(asked(**before), load_spec(before["encoder"], "small")), [])
        spec = load_spec(now.encoder, "small")
        tell_of_other_folders(now, spec, store, skipped=0)
        assert capsys.readouterr().err == ""
        notes = tell_of_other_folders(now, spec, store, skipped=3)
    told = capsys.readouterr().err
    assert told == "".join(f"note: {note}\n" for note in notes)
    assert ("are there already, and /a/videos was built under such names" in told) == is_told == bool(told)


def test_plans_of_other_names_models_and_numbers_of_frames_are_kept_side_by_side():
    args = argparse.Namespace(**{**VIDEOS, "data": Path("/a/videos")})
    small = load_spec("longva", "small")
    titles = {plan_title(args, small), plan_title(args, load_spec("longva", "small", select_layer=-1))}
    for changes in ({"dataset": "one"}, {"dataset": "two"}, {"nframe": 4}):
        titles.add(plan_title(argparse.Namespace(**{**vars(args), **changes}), small))
    assert len(titles) == 5
