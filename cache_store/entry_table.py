"""All entries of a store as one Arrow table, because a million Python objects would take a gigabyte.

Columns: name (relative path), bytes, written_us, used_us (microseconds since 1970), fingerprint8 ("" unknown), runs
(ids joined by ","). Imported where whole stores are handled, not by plain readers and writers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache_store.accounts import Changes, Entry, joined
from cache_store.naming import GROUP_SUFFIX, SHARD_PATTERN, SMALL_BELOW_BYTES

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("written_us", pa.int64()),
        ("used_us", pa.int64()),
        ("fingerprint8", pa.string()),
        ("runs", pa.string()),
    ]
)
_BATCH_ROWS = 1024
UsedRow = tuple[str, int, int, int, str]  # name, bytes, written_us, used_us, runs
_USED_COLUMNS = ["name", "bytes", "written_us", "used_us", "runs"]
GROUP_ROWS = 65_536
_HASHED_AT_ONCE = 131_072
_TAKEN_AT_ONCE = 16_384  # each of them a tuple of 250 bytes


def from_entries(entries: Mapping[str, Entry]) -> pa.Table:
    """A table of the entries, in their order."""
    columns = [list(entries), *(list(column) for column in zip(*entries.values(), strict=True))]
    if len(columns) == 1:
        return SCHEMA.empty_table()
    return pa.table(columns, schema=SCHEMA)


def concatenated(parts: list[pa.Table]) -> pa.Table:
    """The rows of several tables as one."""
    return pa.concat_tables(parts)


def sum_of_bytes(table: pa.Table) -> int:
    return int(pc.sum(table["bytes"]).as_py() or 0)


def merged(table: pa.Table, changes: Changes) -> pa.Table:
    """`table` with the changes applied: rows rewritten, added and dropped, later uses and marks noted."""
    table = _with_uses(table, changes.used)
    touched = [*changes.entries, *changes.runs.keys() - changes.entries.keys()]
    if not touched:
        return table
    # The table may be a hundred times as long as the changes: only these are hashed.
    is_touched = pc.is_in(table["name"], value_set=pa.array(touched, pa.string()))
    touched_rows = table.filter(is_touched)
    if touched_rows.num_rows:  # else the table need not be copied
        table = table.filter(pc.invert(is_touched))
    deleted = pa.array([name for name, entry in changes.entries.items() if entry is None], pa.string())
    rows = dict(_rows(touched_rows.filter(pc.invert(pc.is_in(touched_rows["name"], value_set=deleted)))))
    new = {name: entry for name, entry in changes.entries.items() if entry is not None}
    for name, old in rows.items():
        entry = new.get(name)
        if entry is None:
            new[name] = old._replace(runs=joined(old.runs, changes.runs.get(name, "")))
        elif old.runs:
            new[name] = entry._replace(runs=joined(old.runs, entry.runs))
    return pa.concat_tables([table, from_entries(new)])


def _with_uses(table: pa.Table, used: Mapping[str, int]) -> pa.Table:
    """`table` with later uses noted; of its columns only that of the uses is copied."""
    if not used or not table.num_rows:
        return table
    names, times_us = pa.array(used.keys(), pa.string()), np.fromiter(used.values(), np.int64, len(used))
    found = pc.index_in(table["name"], value_set=names).combine_chunks()
    rows, found = pc.indices_nonzero(found.is_valid()).to_numpy(), found.drop_null().to_numpy()
    column = table["used_us"].to_numpy().copy()
    column[rows] = np.maximum(column[rows], times_us[found])
    return table.set_column(SCHEMA.get_field_index("used_us"), SCHEMA.field("used_us"), [column])


def _rows(table: pa.Table) -> Iterator[tuple[str, Entry]]:
    for name, *values in zip(*(table[column].to_pylist() for column in SCHEMA.names), strict=True):
        yield name, Entry(*values)


def entry_of(table: pa.Table, name: str) -> Entry | None:
    """One entry; slow, for single questions."""
    return dict(_rows(table.filter(pc.equal(table["name"], name)))).get(name)


def without(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """The rows whose names are not among `names`."""
    return table.filter(pc.invert(pc.is_in(table["name"], value_set=pa.array(names, pa.string()))))


def differences(table: pa.Table, on_disk: pa.Array) -> tuple[list[str], list[str]]:
    """The names on disk that the table lacks, and the table's names that are not on disk."""
    unknown = _not_in(on_disk, table["name"])
    if table.num_rows + len(unknown) == len(on_disk):
        return unknown.to_pylist(), []
    return unknown.to_pylist(), _not_in(table["name"], on_disk).to_pylist()


def _not_in(names: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    # By parts of the others: the hash table of a million names takes 70 MB, and a filter of as many 50.
    is_there = pa.repeat(pa.scalar(False), len(names))
    for start in range(0, len(others), _HASHED_AT_ONCE):
        found = pc.is_in(names, value_set=others.slice(start, _HASHED_AT_ONCE))
        is_there = pc.or_(is_there, found.combine_chunks())
    return names.take(pc.indices_nonzero(pc.invert(is_there)))


def is_among(names: pa.Array, others: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """For each name whether it is one of the others; memory for the hash table of the names alone."""
    found = np.zeros(len(names), bool)
    for chunk in others.chunks:
        at = pc.index_in(chunk, value_set=names).drop_null()
        found[at.to_numpy(zero_copy_only=False)] = True
    return found


def apart_from_shards(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The features alone, and the bytes of each shard that are no feature's."""
    is_shard = pc.match_substring_regex(table["name"], pattern=SHARD_PATTERN)
    if not pc.any(is_shard).as_py():
        return table, {}
    rest = table.filter(is_shard)
    # In slices, because shards are few, and a filter would copy all the others.
    places = pc.indices_nonzero(is_shard).to_pylist()
    starts, ends = [0, *(place + 1 for place in places)], [*places, table.num_rows]
    parts = [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True) if start < end]
    features = pa.concat_tables(parts) if parts else table.slice(0, 0)
    return features, dict(zip(rest["name"].to_pylist(), rest["bytes"].to_pylist(), strict=True))


def keep_runs(table: pa.Table, active: set[str]) -> pa.Table:
    """The table without marks of runs that are over, whose entries anyone may evict."""
    marked = pc.unique(table["runs"]).to_pylist()
    shortened = {runs: ",".join(run for run in runs.split(",") if run in active) for runs in marked}
    if all(runs == kept for runs, kept in shortened.items()):
        return table
    rows = pc.index_in(table["runs"], value_set=pa.array(shortened.keys(), pa.string()))
    column = pa.array(shortened.values(), pa.string()).take(rows.combine_chunks())
    return table.set_column(SCHEMA.get_field_index("runs"), "runs", column)


def pools(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The small and the large entries, each with the least recently used first."""
    ordered = table.sort_by([("used_us", "ascending"), ("name", "ascending")])
    is_small = pc.less(ordered["bytes"], SMALL_BELOW_BYTES)
    return ordered.filter(is_small), ordered.filter(pc.invert(is_small))


def to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=GROUP_ROWS,
        use_dictionary=["fingerprint8", "runs"],
        write_statistics=False,
    )
    return bytes(sink.getvalue())


def from_parquet(content: bytes) -> pa.Table:
    """Read a section.

    Raises:
        ValueError: not what `to_parquet` wrote.
    """
    try:
        # Without Arrow's threads: one that lets go of `content` while Python ends aborts the process.
        whole = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        return whole.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as exc:
        raise ValueError(str(exc)) from exc


def rows_of_parquet(content: bytes) -> Iterator[list[UsedRow]]:
    """Lists of rows in the section's order; as `from_parquet`."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowException as exc:
        raise ValueError(str(exc)) from exc
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=_USED_COLUMNS, use_threads=False):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def order_of_use(table: pa.Table) -> pa.Array:
    """The table's rows, least recently used first."""
    return pc.sort_indices(table, [("used_us", "ascending"), ("name", "ascending")])


def rows_in(table: pa.Table, order: pa.Array) -> Iterator[list[UsedRow]]:
    """Lists of the rows that `order` names, in its order."""
    table = table.select(_USED_COLUMNS)
    for start in range(0, len(order), _TAKEN_AT_ONCE):
        part = table.take(order.slice(start, _TAKEN_AT_ONCE))
        yield list(zip(*(column.to_pylist() for column in part.columns), strict=True))


def by_name(table: pa.Table) -> Iterator[tuple[list[Any], ...]]:
    """Lists of names, bytes, times of writing and of use in seconds, and fingerprints or None, sorted by name."""
    order = pc.sort_indices(table, [("name", "ascending")])
    for start in range(0, len(order), GROUP_ROWS):
        part = table.take(order.slice(start, GROUP_ROWS))
        times = ((part[column].to_numpy() / 1e6).tolist() for column in ("written_us", "used_us"))
        fingerprints = (fingerprint8 or None for fingerprint8 in part["fingerprint8"].to_pylist())
        yield part["name"].to_pylist(), part["bytes"].to_pylist(), *times, list(fingerprints)


def written(table: pa.Table, fingerprint8: str) -> Iterator[tuple[str, int, int]]:
    """Names, bytes and times of writing in microseconds of the entries of one recipe."""
    rows = table.filter(pc.equal(table["fingerprint8"], fingerprint8))
    for batch in rows.select(["name", "bytes", "written_us"]).to_batches(max_chunksize=GROUP_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class Group(NamedTuple):
    """Entries of one folder or episode that one recipe made; times in microseconds since 1970."""

    name: str  # of one of them
    fingerprint8: str
    entries: int
    bytes: int
    first_written_us: int
    last_written_us: int
    first_used_us: int
    last_used_us: int


def groups(table: pa.Table) -> Iterator[Group]:
    """Sums by what precedes the index or the MD5 in the name, and by recipe."""
    prefix = pc.replace_substring_regex(table["name"], pattern=GROUP_SUFFIX, replacement="")
    # A video's folder and an episode may have one name: the kind keeps them apart.
    is_video = pc.match_substring_regex(table["name"], pattern=r"/[0-9a-f]{32}\.pt$")
    grouped = table.append_column("prefix", prefix).append_column("is_video", is_video)
    wanted = [("name", "min"), ("bytes", "count"), ("bytes", "sum"), ("written_us", "min"), ("written_us", "max"),
              ("used_us", "min"), ("used_us", "max")]  # fmt: skip
    sums = grouped.group_by(["prefix", "is_video", "fingerprint8"], use_threads=False).aggregate(wanted)
    columns = ["name_min", "fingerprint8", *(f"{column}_{function}" for column, function in wanted[1:])]
    for row in zip(*(sums[column].to_pylist() for column in columns), strict=True):
        yield Group(*row)
