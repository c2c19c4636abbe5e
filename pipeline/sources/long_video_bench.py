"""LongVideoBench: several questions about each video; the validation part, unless a file of the test part is named.

The repository (longvideobench/LongVideoBench) ships `lvb_val.json`, `lvb_test_wo_gt.json`, the same as parquet with
`option0` to `option4` in place of `candidates`, and `videos.tar.part.*`, which unpack to `videos/`. Its rows name the
file within `videos/` (`video_path`: `x.mp4`), as lmms-eval reads them; VLMEvalKit's `LongVideoBench.tsv` says
`./videos/x.mp4`. The videos are already cut: the column `starting_timestamp_for_subtitles` belongs to the subtitles
and bounds no clip.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.sources.benchmark import Layout, Place, Row


def _places(row: Row) -> list[Place]:
    stated = row.text("video_path") or ""
    if PurePosixPath(stated).parts[:1] == ("videos",):
        return [Place(stated)]
    return [Place(f"videos/{stated}"), Place(stated)]


LONG_VIDEO_BENCH = Layout(
    dataset="LongVideoBench",
    annotations=("lvb_val.json", "validation-*.parquet", "LongVideoBench.tsv"),
    video_columns=("video_path",),
    places=_places,
    answer_is="index",
    question_id=("id", "index"),
    question_type=("question_category",),
)
