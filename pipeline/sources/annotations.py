"""Read the rows of a benchmark's annotation file, whatever its format."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError

SUFFIXES = (".parquet", ".json", ".tsv")


def read_rows(path: Path, *, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a parquet, JSON (a list of objects) or TSV file, cut down to those of `columns` it has.

    Raises:
        SourceError: the file is missing, damaged, of another format, or has no rows.
    """
    if not path.is_file():
        raise SourceError(f"the annotation file {path} does not exist")
    if path.suffix.lower() not in SUFFIXES:
        raise SourceError(f"{path} is no annotation file that is known here; expected {', '.join(SUFFIXES)}")
    reader = {".parquet": _read_parquet, ".json": _read_json, ".tsv": _read_tsv}[path.suffix.lower()]
    try:
        rows = reader(path, columns)
    except (OSError, ValueError, csv.Error, KeyError) as exc:
        # pyarrow's errors are ValueErrors, JSON's and Unicode's too.
        raise SourceError(f"the annotation file {path} cannot be read: {exc}") from exc
    if not rows:
        raise SourceError(f"the annotation file {path} has no rows")
    return [{name: row[name] for name in columns if row.get(name) not in (None, "")} for row in rows]


def _read_parquet(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(path).names
    wanted = [name for name in columns if name in names]
    _require_some(path, wanted, columns, names)
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=wanted).to_pylist()
    return rows


def _read_json(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    if rows:
        _require_some(path, [name for name in columns if name in rows[0]], columns, list(rows[0]))
    return rows


def _read_tsv(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    # VLMEvalKit's image benchmarks hold whole pictures in a cell; the default limit is 128 KiB.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        _require_some(path, [name for name in columns if name in (table.fieldnames or [])], columns, table.fieldnames)
        return list(table)


def _require_some(path: Path, found: Sequence[str], wanted: Sequence[str], names: Sequence[str] | None) -> None:
    if not found:
        raise SourceError(
            f"{path} has none of the columns {', '.join(wanted)}; its columns are {', '.join(names or []) or 'none'}"
        )
