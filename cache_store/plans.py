"""What builds wanted to have in the store, so that `stats` can say how much of it is there. Hints only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache_store import naming
from cache_store.atomic import publish

_TITLE = b"title"


def remember(root: Path, title: str, names: Iterable[str]) -> None:
    """Keep the relative paths that a build wants; a later build of the same title takes their place.

    Raises:
        StoreWriteError: the operating system refused.
    """
    table = pa.table({"name": pa.array(names, pa.string())}, metadata={_TITLE: title.encode("utf-8", "surrogatepass")})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    digest = hashlib.sha256(title.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    publish([memoryview(sink.getvalue())], root / naming.PLANS / f"{digest}.parquet")


def titles(root: Path) -> list[str]:
    """Return the titles of the plans that are kept; of damaged ones, and of those from before titles were, none."""
    found = []
    for path in _paths(root):
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowException):
            continue
        if _TITLE in metadata:
            found.append(metadata[_TITLE].decode("utf-8", "surrogatepass"))
    return found


def coverage(root: Path, present: pa.ChunkedArray) -> dict[str, tuple[int, int]]:
    """Planned features and how many of them are among `present`, by data set as `stats` shows it."""
    planned = _planned(root)
    if len(planned) == 0:
        return {}
    is_there = pc.is_in(planned, value_set=present)
    prefix = pc.replace_substring_regex(planned, pattern=naming.GROUP_SUFFIX, replacement="")
    grouped = pa.table({"prefix": prefix, "name": planned, "is_there": is_there.cast(pa.int64())})
    sums = grouped.group_by("prefix", use_threads=False).aggregate(
        [("name", "min"), ("name", "count"), ("is_there", "sum")]
    )
    found: dict[str, tuple[int, int]] = {}
    columns = (sums[column].to_pylist() for column in ("name_min", "name_count", "is_there_sum"))
    for name, wanted, there in zip(*columns, strict=True):
        dataset = naming.dataset_shown(name)
        before = found.get(dataset, (0, 0))
        found[dataset] = (before[0] + wanted, before[1] + there)
    return found


def _names_in(path: Path) -> pa.ChunkedArray:
    # Without Arrow's threads, which it starts for files too: see `entry_table.from_parquet`.
    file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
    return file.read(["name"], use_threads=False)["name"].cast(pa.string())


def _planned(root: Path) -> pa.Array:
    parts = []
    for path in _paths(root):
        try:
            parts.append(_names_in(path))
        except (OSError, pa.ArrowException, KeyError):
            # Damaged or just replaced: coverage is unknown, nothing else.
            continue
    return pc.unique(
        pa.concat_arrays([chunk for part in parts for chunk in part.chunks] or [pa.array([], pa.string())])
    )


def _paths(root: Path) -> list[Path]:
    try:
        return sorted((root / naming.PLANS).glob("*.parquet"))
    except OSError:
        return []
