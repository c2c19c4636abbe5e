"""The table question -> video of a benchmark, as a parquet file beside the plan, for evaluation to join on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.sources.samples import Question

FILE_NAME = "questions.parquet"

# Column: its type in Arrow.
_COLUMNS = {
    "row": "int64",  # from 0, over all annotation files
    "annotations": "string",
    "task": "string",
    "question_id": "string",
    "question": "string",
    "question_type": "string",
    "dataset": "string",  # with `video_id`, what names the feature in the store
    "video_id": "string",
    "path": "string",  # POSIX, relative to the data folder
    "start_s": "float64",
    "end_s": "float64",
    "problem": "string",  # why the video cannot be built; null where it can
}


def write_questions(questions: Iterable[Question], folder: Path) -> Path:
    """Write `questions.parquet` into `folder`, one row for each question in their order, and return its path.

    Raises OSError.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in _COLUMNS.items()])
    rows = [as_utf8(_row(number, question)) for number, question in enumerate(questions)]
    table = pyarrow.Table.from_pylist(rows, schema)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with open(path, "wb") as file:  # Arrow takes no path that is no UTF-8
        pyarrow.parquet.write_table(table, file)
    return path


def as_utf8(row: Mapping[str, Any]) -> dict[str, Any]:
    r"""Return a row whose texts Arrow takes: bytes of a path that are no UTF-8 are escaped, `\udcff`."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def _row(number: int, question: Question) -> dict[str, Any]:
    sample = question.sample
    return {
        "row": number,
        "annotations": question.annotations,
        "task": question.task,
        "question_id": question.question_id,
        "question": question.question,
        "question_type": question.question_type,
        "dataset": sample.dataset,
        "video_id": sample.video_id,
        "path": sample.relative_path,
        "start_s": sample.start_s,
        "end_s": sample.end_s,
        "problem": sample.problem,
    }
