"""Adds up what the whole store holds and what was asked of it: by data set, and within one by model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import entry_table, int8, naming, plans
from cache_store.accounts import Counters
from cache_store.archive import Record
from cache_store.books import View
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.maintenance import RecordOf
from cache_store.naming import dataset_shown
from cache_store.opening import is_packed, open_feature
from cache_store.reports import DatasetStats, Int8Stats, ModelStats, PinInfo, StoreStats
from cache_store.settings import Settings

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass
class _Dataset:
    models: list[ModelStats] = field(default_factory=list)
    oldest_write_us: int = 1 << 62
    newest_write_us: int = 0
    last_use_us: int = 0
    losses: list[int8.Loss | None] = field(default_factory=list)  # None of those that do not tell


def summed_up(view: View, root: Path, limits: Settings, pins: list[PinInfo], record_of: RecordOf) -> StoreStats:
    """The statistics of all entries; reads a record for each recipe, of videos in each folder, and heads of int8 files.

    Videos of one folder and recipe are told by one of them, also where their signatures or frame counts differ.
    """
    datasets: dict[str, _Dataset] = {}
    records: dict[tuple[str, str], Record | None] = {}
    groups = list(entry_table.groups(view.table))
    for group in groups:
        fingerprint8 = group.fingerprint8
        of_dataset = datasets.setdefault(dataset_shown(group.name), _Dataset())
        # A video's record tells its tower's signature, which its recipe need not.
        made = (naming.group_of(group.name) if naming.is_video(group.name) else "", fingerprint8)
        if made not in records or not fingerprint8:
            records[made] = _found(record_of, group.name)
        record = records[made]
        of_dataset.models.append(ModelStats(model_in(record), fingerprint8 or None, group.entries, group.bytes))
        if _is_int8(record):
            of_dataset.losses += _losses(root, view.table, group)
        of_dataset.oldest_write_us = min(of_dataset.oldest_write_us, group.first_written_us)
        of_dataset.newest_write_us = max(of_dataset.newest_write_us, group.last_written_us)
        of_dataset.last_use_us = max(of_dataset.last_use_us, group.last_used_us)
    counters = view.changes.counters
    planned = plans.coverage(root, view.table["name"])
    names = sorted(datasets.keys() | counters.keys() | planned.keys())
    shown = {name: _stats_of(datasets.get(name), counters.get(name), planned.get(name)) for name in names}
    totals = _sum(counters.values())
    return StoreStats(
        entries=view.table.num_rows,
        bytes=entry_table.sum_of_bytes(view.table),
        limit_bytes=limits.limit_bytes,
        soft_limit_bytes=limits.soft_limit_bytes,
        datasets=shown,
        hits=totals.hits,
        misses=totals.misses,
        evictions=totals.evictions,
        damaged=totals.damaged,
        evicted_unread=totals.unread,
        oldest=min((group.first_used_us / 1e6 for group in groups), default=None),
        newest=max((group.last_used_us / 1e6 for group in groups), default=None),
        pins=pins,
    )


def _stats_of(found: _Dataset | None, counters: Counters | None, planned: tuple[int, int] | None) -> DatasetStats:
    models = sorted(found.models, key=lambda model: -model.bytes) if found else []
    counted = counters or Counters()
    losses = [loss for loss in found.losses if loss is not None] if found else []
    return DatasetStats(
        entries=sum(model.entries for model in models),
        bytes=sum(model.bytes for model in models),
        models=models,
        hits=counted.hits,
        misses=counted.misses,
        evictions=counted.evictions,
        damaged=counted.damaged,
        planned=planned[0] if planned else None,
        planned_present=planned[1] if planned else None,
        oldest_write=found.oldest_write_us / 1e6 if found else None,
        newest_write=found.newest_write_us / 1e6 if found else None,
        last_use=found.last_use_us / 1e6 if found else None,
        int8=_int8_stats(losses) if losses else None,
        int8_untold=len(found.losses) - len(losses) if found else 0,
    )


def _int8_stats(losses: list[int8.Loss]) -> Int8Stats:
    return Int8Stats(
        entries=len(losses),
        worst_cosine=min(loss.worst_cosine for loss in losses),
        mean_cosine=math.fsum(loss.mean_cosine for loss in losses) / len(losses),
        max_error=max(loss.max_error for loss in losses),
        worst_relative_error=max(loss.relative_error for loss in losses),
        mean_relative_error=math.fsum(loss.relative_error for loss in losses) / len(losses),
    )


def _is_int8(record: Record | None) -> bool:
    try:
        return record is not None and int8.is_asked_for(record.recipe)
    except ValueError:
        return False  # a newer version's


def _losses(root: Path, table: Table, group: entry_table.Group) -> Iterable[int8.Loss | None]:
    """What the features of a group lost; None for each that does not tell."""
    prefix = naming.group_of(group.name)
    for name, *identity in entry_table.written(table, group.fingerprint8):
        if naming.group_of(name) == prefix:
            try:
                yield _loss_of(root, name, *identity)
            except LookupError:
                yield None


@functools.lru_cache(maxsize=1 << 17)
def _loss_of(root: Path, name: str, size: int, written_us: int) -> int8.Loss:
    # Kept, because who watches the statistics looks every two seconds. What tells nothing is an error, which is not:
    # of what lies behind a URL a copy may come.
    loss = int8.loss_in(f"{root}/{name}")
    if loss is None and is_packed(root, name):
        # Evicted this moment, or a problem that `verify` names.
        with suppress(FileNotFoundError, DamagedFeature, StoreReadError), open_feature(root, name) as archive:
            loss = int8.loss_of(archive.tree())
    if loss is None:
        raise LookupError(name)
    return loss


def _sum(counters: Iterable[Counters]) -> Counters:
    total = Counters()
    for one in counters:
        total.add(one.hits, one.misses, one.evictions, one.damaged, one.unread)
    return total


def _found(record_of: RecordOf, name: str) -> Record | None:
    try:
        return record_of(name)
    except (FileNotFoundError, DamagedFeature, StoreReadError):
        # Evicted this moment, or a problem that `verify` names.
        return None


def model_in(record: Record | None) -> str | None:
    """A short name of what made a record: family, tower signature, dtypes, digits of the weights' digest, frames."""
    if record is None:
        return None
    key = record.key or {}
    encoder = (record.recipe or {}).get("encoder")
    fields: dict[str, Any] = encoder if isinstance(encoder, dict) else {}
    digest = str(fields.get("weights_sha256") or "")[:8]
    parts = [
        fields.get("family"),
        key.get("model_signature"),
        fields.get("dtype"),
        "int8" if _is_int8(record) else None,
        f"weights {digest}" if digest else None,
        f"nframe {key['nframe']}" if "nframe" in key else None,
    ]
    return " ".join(str(part) for part in parts if part) or None
