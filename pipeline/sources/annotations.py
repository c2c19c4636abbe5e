"""Read the rows of a benchmark's annotation file, whatever its format."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

from pipeline.errors import SourceError
from pipeline.sources.media_path import MediaPath

SUFFIXES = (".parquet", ".json", ".jsonl", ".tsv", ".csv")

Rows = list[dict[str, Any]]


def read_rows(
    place: MediaPath,
    *,
    columns: Sequence[str],
    required: Sequence[str] = (),
    unfold: Callable[[Any], Rows] | None = None,
) -> Rows:
    """Return the rows of an annotation file, cut down to those of `columns` that they have and fill.

    JSON is a list of objects, or what `unfold` makes into one (it raises ValueError, KeyError or TypeError for what is
    no such file); `.jsonl` is an object a line. TSV and CSV have a header. Half a surrogate pair, which no file of ours
    could hold, is read as a question mark.

    Raises:
        SourceError: the file is missing, damaged, of another format, has no rows, or none of the `required` columns.
    """
    suffix = place.suffix.lower()
    if suffix not in SUFFIXES:
        raise SourceError(f"{place} is no annotation file that is known here; expected {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            names, rows = _read_parquet(place, columns)
        elif suffix in (".tsv", ".csv"):
            names, rows = _read_table(place, delimiter="\t" if suffix == ".tsv" else ",")
        else:
            names, rows = _read_json(place, is_lines=suffix == ".jsonl", unfold=unfold)
    except FileNotFoundError as exc:
        raise SourceError(f"the annotation file {place} does not exist") from exc
    except (OSError, ValueError, csv.Error, KeyError, TypeError, RecursionError) as exc:
        # pyarrow's errors are ValueErrors, JSON's and Unicode's too.
        raise SourceError(f"the annotation file {place} cannot be read: {exc}") from exc
    if not rows:
        raise SourceError(f"the annotation file {place} has no rows")
    if required and not set(required) & set(names):
        raise SourceError(
            f"{place} has none of the columns {', '.join(required)}; its columns are {', '.join(names) or 'none'}"
        )
    return [{name: _whole_text(row[name]) for name in columns if row.get(name) not in (None, "")} for row in rows]


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole_text(one) for one in value]
    if isinstance(value, dict):
        return {_whole_text(name): _whole_text(one) for name, one in value.items()}
    return value


def _read_parquet(place: MediaPath, columns: Sequence[str]) -> tuple[list[str], Rows]:
    import pyarrow.parquet

    with place.open("rb") as file:
        parquet = pyarrow.parquet.ParquetFile(file)
        names: list[str] = parquet.schema_arrow.names
        # Some benchmarks hold whole pictures in other columns. Arrow's threads may not outlive Python's file.
        wanted = [name for name in columns if name in names]
        return names, parquet.read(columns=wanted, use_threads=False).to_pylist()


def _read_json(place: MediaPath, *, is_lines: bool, unfold: Callable[[Any], Rows] | None) -> tuple[list[str], Rows]:
    with place.open("rb") as file:
        text = file.read().decode("utf-8-sig")
    # JSON may hold other ends of lines, such as U+2028, within its texts.
    rows = [json.loads(line) for line in text.split("\n") if line.strip()] if is_lines else json.loads(text)
    if unfold is not None and not isinstance(rows, list):
        rows = unfold(rows)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    return list(rows[0]) if rows else [], rows


def _read_table(place: MediaPath, *, delimiter: str) -> tuple[list[str], Rows]:
    # VLMEvalKit's image benchmarks hold whole pictures in a cell; the default limit, the process's own, is 128 KiB.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with place.open("rb") as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(text, delimiter=delimiter)
            return list(table.fieldnames or []), list(table)
    finally:
        csv.field_size_limit(limit)
