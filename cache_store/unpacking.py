"""Gives packed features back as the loose files that they were, byte for byte, and removes shards that hold nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache_store import naming, shard_index, shards
from cache_store.atomic import publish_new
from cache_store.books import Books
from cache_store.dataset_patterns import DatasetPatterns
from cache_store.errors import StoreReadError
from cache_store.journal import line, now_us
from cache_store.lease import lease
from cache_store.packing import PackProgress, PackReport, Told, mend, remove_folders, tidy
from cache_store.removing import waste_lines
from cache_store.reports import Problem
from cache_store.rewriting import rewrite_and_note, waste_bytes
from cache_store.shard_file import Shard
from cache_store.shards import Place
from cache_store.taking import identity_of, take

_AT_ONCE = 1024
_WAIT_S = 600.0


def unpack(
    root: Path, books: Books, datasets: tuple[str, ...] | None, progress: Told, *, keep: bool, dry_run: bool
) -> PackReport:
    """As `Upkeep.unpack`."""
    report = PackReport(dry_run=dry_run)
    with contextlib.nullcontext() if dry_run else lease(root / naming.PACK_LEASE, timeout_s=_WAIT_S):
        if not dry_run:
            mend(root, books)
        view = shards.of(root).view()
        wanted = [_wanted(shard, counts, datasets) for shard, counts in zip(view.shards, view.winners(), strict=True)]
        total = sum(map(len, wanted))
        for shard, rows in zip(view.shards, wanted, strict=True):
            for some in _batches(rows):
                if dry_run:
                    report.files += len(some)
                    report.bytes += int(shard.bytes[some].sum())
                else:
                    _unpack_rows(root, books, shard, some, report, keep=keep)
                if progress is not None:
                    progress(PackProgress(report.files, total, report.bytes, len(report.problems)))
            shard.forget_pages()
            report.shards += bool(rows)
            # Under a limit at once: what was unpacked of a shard of which more is left is there twice until then.
            is_due = shard.states()[1].all() or (rows and books.budget.limits.limit_bytes is not None)
            if not dry_run and not keep and is_due:
                report.freed_bytes += rewrite_and_note(root, [shard], books.journal) or 0
        if not dry_run:
            report.freed_bytes += tidy(root, books)
            shard_index.write(root)
    return report


def _wanted(shard: Shard, counts: np.ndarray, datasets: tuple[str, ...] | None) -> list[int]:
    rows: list[int] = np.flatnonzero(counts).tolist()
    if datasets is None:
        return rows
    patterns = DatasetPatterns(datasets)
    chosen = []
    for row in rows:
        parsed = naming.parse(shard.name(row))
        if parsed is not None and patterns.matches(parsed.dataset, parsed.fingerprint8):
            chosen.append(row)
    return chosen


def _batches(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _unpack_rows(root: Path, books: Books, shard: Shard, rows: list[int], report: PackReport, *, keep: bool) -> None:
    sound: list[int] = []
    for row in rows:
        try:
            problem = shard.problem(row)
        except StoreReadError as exc:
            problem = f"cannot be read: {exc.reason}"
        if problem is None:
            sound.append(row)
        else:
            report.problems.append(Problem(shard.name(row), problem))
    paths = [f"{root}/{shard.name(row)}" for row in sound]
    files = [(shard.content(row), path, int(shard.written_ns[row])) for row, path in zip(sound, paths, strict=True)]
    name, claimed = f"{naming.PACKED}/{shard.id}", 0
    # A name that is taken is taken by a newer version, or by the file that an earlier run wrote.
    if keep:
        with books.room_for(name, int(shard.bytes[sound].sum()), may_evict=False) as claimed:
            made = publish_new(files)
    else:
        made = publish_new(files)
    wasted = 0
    for row, path, is_new in zip(sound, paths, made, strict=True):
        if is_new and shard.is_dead(row):
            _withdraw(root, shard, row, path)
            continue
        wasted += int(shard.bytes[row]) if is_new else 0
        report.files += 1
        report.bytes += int(shard.bytes[row])
    if keep:
        waste, time_us = waste_bytes(shard) + _hidden_bytes(root, shard), now_us()
        books.journal.append(line("p", wasted - claimed, waste, time_us, "", "", claimed, name, time_us=time_us))
    else:
        view = shards.of(root).view()
        for at in view.not_alone(shard, [shard.name(row) for row in sound]):
            # What a writer that died over it has left of an older version must not come to light behind the file.
            version = Place(shard, sound[at]).version
            shards.supersede([one for one in view.places(shard.name(sound[at])) if one.version < version])
        shard.mark("dead", sound)
        books.journal.append(*waste_lines(root, {name: wasted}))


def _hidden_bytes(root: Path, shard: Shard) -> int:
    """Bytes of the rows that count and are hidden by files of their names."""
    rows = np.flatnonzero(shard.counting()).tolist()
    return sum(int(shard.bytes[row]) for row in rows if os.path.lexists(f"{root}/{shard.name(row)}"))


def _withdraw(root: Path, shard: Shard, row: int, path: str) -> None:
    """Take back a file whose feature was deleted while it was being unpacked, unless a newer one has its name."""
    folder, name = root / naming.taken_folder(), shard.name(row)
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        is_ours = (status.st_size, status.st_mtime_ns) == (int(shard.bytes[row]), int(shard.written_ns[row]))
        if is_ours and take(root, name, folder, identity_of(status)):
            os.unlink(folder / name)
    remove_folders(folder)
