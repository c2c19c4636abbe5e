"""VideoMMMU: 300 lectures, each asked about in three parts: Perception, Comprehension and Adaptation.

The repository (lmms-lab/VideoMMMU) ships `<part>/test-*.parquet` with the lecture's name as `id`, and a zip for
each of six disciplines. lmms-eval unpacks `<discipline>/<id>.mp4`, VLMEvalKit `videos/<discipline>/<id>.mp4` and
names that file in the column `video` of `VideoMMMU.tsv`. The `id` repeats in all three parts.
`question_only/<id>_image.mp4` shows an Adaptation question's picture for a few frames; it is no lecture and is
never taken for one.
"""

from __future__ import annotations

from pipeline.sources.benchmark import Layout, Place, Row

DISCIPLINES = ("Art", "Business", "Engineering", "Humanities", "Medicine", "Science")


def _places(row: Row) -> list[Place]:
    stated = row.text("video")
    if stated is not None:
        return [Place(stated)]
    name = row.text("id")
    folders = [f"{above}{discipline}" for above in ("videos/", "") for discipline in DISCIPLINES]
    return [Place(f"{folder}/{name}.mp4") for folder in (*folders, "videos", ".")]


VIDEO_MMMU = Layout(
    dataset="VideoMMMU",
    annotations=("*/test-*.parquet", "VideoMMMU.tsv"),
    video_columns=("video", "id"),
    other_columns=("category",),
    places=_places,
    answer_is="letter",
    question_id=("id", "index"),
    question_type=("question_type",),
    task=lambda row: row.text("category") or row.folder or None,
)
