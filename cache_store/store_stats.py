"""Adds up what the whole store holds and what was asked of it: by data set, and within one by model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_store import entry_table, plans
from cache_store.accounts import Counters
from cache_store.archive import Record
from cache_store.books import View
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.naming import dataset_shown
from cache_store.opening import read_record
from cache_store.reports import DatasetStats, ModelStats, PinInfo, StoreStats
from cache_store.settings import Settings


@dataclass
class _Dataset:
    models: list[ModelStats] = field(default_factory=list)
    oldest_write_us: int = 1 << 62
    newest_write_us: int = 0
    last_use_us: int = 0


def summed_up(view: View, root: Path, limits: Settings, pins: list[PinInfo]) -> StoreStats:
    """The statistics of all entries; reads the record of one file for each data set and recipe."""
    datasets: dict[str, _Dataset] = {}
    models: dict[str, str | None] = {}
    groups = list(entry_table.groups(view.table))
    for group in groups:
        fingerprint8 = group.fingerprint8
        of_dataset = datasets.setdefault(dataset_shown(group.name), _Dataset())
        if fingerprint8 not in models or not fingerprint8:
            models[fingerprint8] = _model_of(root, group.name)
        of_dataset.models.append(ModelStats(models[fingerprint8], fingerprint8 or None, group.entries, group.bytes))
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
    )


def _sum(counters: Iterable[Counters]) -> Counters:
    total = Counters()
    for one in counters:
        total.add(one.hits, one.misses, one.evictions, one.damaged, one.unread)
    return total


def _model_of(root: Path, name: str) -> str | None:
    """How a file's record names its model; None when it does not."""
    try:
        return model_in(read_record(root, name))
    except (FileNotFoundError, DamagedFeature, StoreReadError):
        # Evicted this moment, or a problem that `verify` names.
        return None


def model_in(record: Record | None) -> str | None:
    """A short name of the model in a record: family, tower signature, dtype, first digits of the weights' digest."""
    if record is None:
        return None
    encoder = (record.recipe or {}).get("encoder")
    fields: dict[str, Any] = encoder if isinstance(encoder, dict) else {}
    digest = str(fields.get("weights_sha256") or "")[:8]
    parts = [
        fields.get("family"),
        (record.key or {}).get("model_signature"),
        fields.get("dtype"),
        f"weights {digest}" if digest else None,
    ]
    return " ".join(str(part) for part in parts if part) or None
