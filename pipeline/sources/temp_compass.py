"""TempCompass: 410 short videos, each asked about in four tasks: multi-choice, yes_no, caption_matching and captioning.

The repository (lmms-lab/TempCompass) ships `<task>/test-*.parquet` with `video_id`, `question`, `answer` and `dim`,
and a zip that unpacks to `videos/<video_id>.mp4`, where both harnesses look. The options are the last lines of the
question, and the answer is one of them. VLMEvalKit writes `<task>.json` with the same columns, and
`TempCompass_MCQ.tsv`, `TempCompass_YorN.tsv` and `TempCompass_Captioning.tsv` with `task_type`, `prefix`, `video`,
`suffix` and, of the first, `candidates`.
"""

from __future__ import annotations

from pipeline.sources.benchmark import Layout, Place, Row

TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")


def _places(row: Row) -> list[Place]:
    name = row.text("video", "video_id")
    return [Place(f"{row.text('prefix') or 'videos'}/{name}{row.text('suffix') or '.mp4'}")]


def _task(row: Row) -> str | None:
    known = (name for name in (row.text("task_type"), row.folder, row.stem) if name in TASKS)
    return row.text("task_type") or next(known, None)


TEMP_COMPASS = Layout(
    dataset="TempCompass",
    annotations=("*/test-*.parquet", "TempCompass_*.tsv", " ".join(f"{task}.json" for task in TASKS)),
    video_columns=("video", "video_id"),
    other_columns=("prefix", "suffix", "task_type"),
    places=_places,
    answer_is="text",
    question_id=("question_id", "index"),
    question_type=("dim",),
    task=_task,
)
