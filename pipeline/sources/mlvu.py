"""MLVU: 1,730 videos of minutes to hours in nine tasks, seven of them multiple choice.

The repository (MLVU/MVLU) ships `MLVU/json/<n>_<task>.json` and `MLVU/video/<n>_<task>/<video>`, the video with its
extension; VLMEvalKit's `MLVU_MCQ.tsv` and `MLVU_OpenEnded.tsv` name that folder in `prefix`. lmms-eval reads
parquet files of other repositories (sy1998/MLVU_dev, sy1998/MLVU_Test), whose `video_name` is relative to the
folder of the videos, and whose questions list the options themselves and are answered by letter.
"""

from __future__ import annotations

from pipeline.sources.benchmark import Layout, Place, Row


def _places(row: Row) -> list[Place]:
    name = row.text("video", "video_name")
    prefix = row.text("prefix")
    if prefix is not None:
        return [Place(f"{prefix}/{name}")]
    if row.text("video") is not None:
        return [Place(f"{folder}/{row.stem}/{name}") for folder in ("MLVU/video", "video")]
    return [Place(f"{folder}/{name}") for folder in (".", "video", "videos")]


MLVU = Layout(
    dataset="MLVU",
    annotations=("MLVU/json/*.json", "json/*.json", "MLVU_*.tsv", "*/test-*.parquet", "test-*.parquet"),
    video_columns=("video", "video_name"),
    other_columns=("prefix", "task_type"),
    places=_places,
    answer_is="text",
    stems_repeat=True,
    question_id=("question_id", "index"),
    question_type=("question_type", "task_type"),
    task=lambda row: row.text("task_type", "question_type") or row.stem.lstrip("0123456789").removeprefix("_"),
)
