"""What a store would have to evict for so many bytes more, and what its pins keep, told without touching anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cache_store import entry_table
from cache_store.books import View
from cache_store.bulk import Asked, rows_asked_for
from cache_store.evictor import Guard, Row, in_order, pool_to_evict
from cache_store.naming import SMALL_BELOW_BYTES, dataset_shown, group_of, is_small
from cache_store.pins import Protected
from cache_store.reports import Evicted, Eviction
from cache_store.settings import Settings


class Growth(NamedTuple):
    """Files to come."""

    bytes: int
    features: int


def pinned_bytes(table: pa.Table, protected: Protected, besides: Asked) -> int:
    """The size of the entries that pins keep, without the features of `besides`."""
    covered = pa.chunked_array(_covered(table, protected), pa.bool_()).combine_chunks()
    return _bytes_in(table, pc.and_(covered, pc.invert(rows_asked_for(table, besides))))


def _bytes_in(table: pa.Table, rows: pa.Array) -> int:
    return int(pc.sum(table["bytes"].filter(rows)).as_py() or 0)


def _covered(table: pa.Table, protected: Protected) -> Iterator[pa.Array]:
    for chunk in table["name"].chunks:
        for start in range(0, len(chunk), entry_table.GROUP_ROWS):
            names = chunk.slice(start, entry_table.GROUP_ROWS).to_pylist()
            yield pa.array(map(protected.covers, names), pa.bool_())


def eviction(
    view: View, limits: Settings, protected: Protected, growth: Growth, keeping: Asked, *, is_replacing: bool
) -> Eviction:
    """As `Lookup.eviction_for`: by the evictor's order and pools, until the soft limit, or else the limit, is kept."""
    table, limit_bytes = view.table, limits.limit_bytes
    goal_bytes = limits.soft_limit_bytes or limit_bytes
    replaced_bytes = 0
    kept: pa.Array | None = None
    if is_replacing:
        kept = rows_asked_for(table, keeping)
        replaced_bytes = _bytes_in(table, kept)
    total_bytes = (
        entry_table.sum_of_bytes(table) + view.waste_bytes + view.changes.granted_bytes + growth.bytes - replaced_bytes
    )
    if limit_bytes is None or goal_bytes is None or total_bytes <= goal_bytes:
        return Eviction(0, 0, {}, replaced_bytes, 0)
    order = entry_table.order_of_use(table)
    kept = rows_asked_for(table, keeping) if kept is None else kept
    order = order.filter(pc.invert(kept.take(order)))
    small_bytes = _bytes_in(table, pc.less(table["bytes"], SMALL_BELOW_BYTES))
    if growth.features and is_small(growth.bytes // growth.features):
        small_bytes += growth.bytes - replaced_bytes
    guard = Guard(view.active_runs, view.changes.being_written, protected)
    found = _Found()
    for row in _evicted(table, order, guard, total_bytes - goal_bytes, small_bytes, limit_bytes):
        found.add(row)
    missing_bytes = max(0, total_bytes - found.bytes - limit_bytes)
    return Eviction(found.entries, found.bytes, found.by_dataset(), replaced_bytes, missing_bytes)


def _evicted(
    table: pa.Table, order: pa.Array, guard: Guard, excess_bytes: int, small_bytes: int, limit_bytes: int
) -> Iterator[Row]:
    queues = {pool: in_order(_rows(table, order, are_small=pool == "small")) for pool in ("small", "large")}
    while excess_bytes > 0:
        pool = pool_to_evict(small_bytes, limit_bytes)
        row = _next(queues[pool], guard) or _next(queues["large" if pool == "small" else "small"], guard)
        if row is None:
            return
        excess_bytes -= row.bytes
        small_bytes -= row.bytes if is_small(row.bytes) else 0
        yield row


def _rows(table: pa.Table, order: pa.Array, *, are_small: bool) -> Iterator[list[entry_table.UsedRow]]:
    for rows in entry_table.rows_in(table, order):
        yield [row for row in rows if is_small(row[1]) == are_small]


def _next(queue: Iterator[Row], guard: Guard) -> Row | None:
    return next((row for row in queue if not guard.keeps(row.name, row.runs)), None)


class _Found:
    def __init__(self) -> None:
        self.entries = self.bytes = 0
        self._groups: dict[str, list[int]] = {}  # entries and bytes by what names have in common
        self._name_in: dict[str, str] = {}

    def add(self, row: Row) -> None:
        self.entries += 1
        self.bytes += row.bytes
        group = group_of(row.name)
        sums = self._groups.get(group)
        if sums is None:
            sums = self._groups[group] = [0, 0]
            self._name_in[group] = row.name
        sums[0] += 1
        sums[1] += row.bytes

    def by_dataset(self) -> dict[str, Evicted]:
        """Largest first."""
        found: dict[str, Evicted] = {}
        for group, (entries, size) in self._groups.items():
            dataset = dataset_shown(self._name_in[group])
            before = found.get(dataset, Evicted(0, 0))
            found[dataset] = Evicted(before.entries + entries, before.bytes + size)
        return dict(sorted(found.items(), key=lambda item: (-item[1].bytes, item[0])))
