"""Video-MME: 900 videos, three questions each, as its own parquet or JSON or VLMEvalKit's TSV lists them.

The repository (lmms-lab/Video-MME) ships `videomme/test-*.parquet` and zips with `data/<videoID>.mp4`; VLMEvalKit
moves the videos to `video/`, lmms-eval takes `data/<videoID>.mp4`, `.MP4` or `.mkv`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sources.benchmark import Layout, Place, Row

# Where benchmarks and the harnesses unpack the videos, in the order in which they are tried.
FOLDERS = ("video", "videos", "data", ".")
EXTENSIONS = ("mp4", "MP4", "mkv", "webm", "mov")

# `videoID` is the id on the video platform; `video_id` ("001") numbers the videos and names no file.
_ID_COLUMNS = ("videoID", "video")


def _name(row: Row) -> str:
    name = row.text(*_ID_COLUMNS) or ""
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError(f"the video id {name!r} is no file name")
    return name


def _places(row: Row) -> Iterator[Place]:
    stated = row.text("video_path")
    if stated is not None:
        yield Place(stated)
    for folder in FOLDERS:
        for extension in EXTENSIONS:
            yield Place(f"{folder}/{_name(row)}.{extension}")


VIDEO_MME = Layout(
    dataset="Video-MME",
    annotations=("videomme/test-*.parquet",),
    annotation_folders=(".", "videomme"),
    video_columns=_ID_COLUMNS,
    other_columns=("video_path",),
    places=lambda row: tuple(_places(row)),
    answer_is="letter",
    name=_name,
    question_type=("task_type",),
)
