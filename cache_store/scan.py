"""Corrects the books by the files themselves: a feature exists if and only if its final name exists."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr, NamedTuple

from cache_store import naming, pins, shards
from cache_store.accounts import Changes, Entry
from cache_store.archive import recorded_fingerprint8
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal
from cache_store.lease import lease
from cache_store.ledger import Ledger
from cache_store.opening import entry_of
from cache_store.taking import taken_names

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import ChunkedArray, Table

STRAY_AFTER_S = 24 * 3600.0
LEASE_WAIT_S = 30.0
_NAMES_AT_ONCE = 65_536
_TRIES = 20


def feature_names(root: Path) -> Iterator[str]:
    """Relative paths of all features, by names alone: no file is touched. In no order."""
    view = shards.of(root).view()
    loose: set[str] = set()
    for name in loose_names(root):
        if view is not shards.EMPTY:
            loose.add(name)
        yield name
    # Looked at again: what has been packed since the listing began is in a shard by now.
    view = shards.of(root).view()
    taken = taken_names(view).keys() - loose
    yield from taken
    yield from (name for name in view.names() if name not in loose and name not in taken)


def names_on_disk(root: Path) -> ChunkedArray:
    """Relative paths of everything that could be a feature, and much that is none, as the file system lists them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays = []
    for folder, names in _listings(root):
        try:
            array = pa.array(names, pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            # No feature's name has bytes that are not UTF-8.
            array = pa.array([name for name in names if _is_utf8(name)], pa.string())
        arrays.append(pc.binary_join_element_wise(folder, array, "/") if folder else array)
    return pa.chunked_array(arrays, pa.string())


def loose_names(root: Path) -> Iterator[str]:
    """Relative paths of the features that are loose files. In no order."""
    for folder, names in _listings(root):
        for name in map(os.fsdecode, names):
            relative = f"{folder}/{name}" if folder else name
            if naming.is_feature(relative):
                yield relative


def packed_on_disk(root: Path, loose: ChunkedArray) -> tuple[list[pa.Array], dict[str, Entry]]:
    """Names of the packed features beside which no loose file lies, and the shards as entries of their own.

    A shard's entry has the bytes that are no feature's: of dead rows, of rows that a loose file hides, and its frame.
    """
    import pyarrow as pa

    from cache_store import entry_table

    view = shards.of(root).view()
    taken = pa.array(sorted(taken_names(view)), pa.string())
    names = [taken.filter(pa.array(~entry_table.is_among(taken, loose)))] if len(taken) else []
    entries: dict[str, Entry] = {}
    for shard, counts in zip(view.shards, view.winners(), strict=True):
        rows = counts.nonzero()[0]
        present = shard.arrow_names().filter(pa.array(counts)).cast(pa.string())
        is_hidden = entry_table.is_among(present, loose) | entry_table.is_among(present, pa.chunked_array([taken]))
        names.append(present.filter(pa.array(~is_hidden)) if is_hidden.any() else present)
        waste_bytes = shard.file_bytes - int(shard.bytes[rows[~is_hidden]].sum())
        entries[f"{naming.PACKED}/{shard.id}"] = Entry(waste_bytes, 0, 0, "", "")
    return names, entries


def _joined(on_disk: ChunkedArray, packed: list[pa.Array]) -> ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not packed:
        return on_disk
    is_shard = pc.match_substring_regex(on_disk, pattern=naming.SHARD_PATTERN)
    return pa.chunked_array([*on_disk.filter(pc.invert(is_shard)).chunks, *packed], pa.string())


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_folder(item: os.DirEntry[AnyStr]) -> bool:
    """As `item.is_dir()`; False for a link that leads nowhere."""
    try:
        return item.is_dir()
    except OSError:
        return False


def _listings(root: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Folders and names in them, some thousand at a time: a list of a million names would take 100 MB."""
    folders = [""]
    for folder in folders:  # the first of them finds the others
        try:
            with os.scandir(os.fsencode(root / folder)) as listing:
                while items := list(islice(listing, _NAMES_AT_ONCE)):
                    if not folder:
                        visible = (item for item in items if item.name[:1] != b".")
                        folders += [os.fsdecode(item.name) for item in visible if is_folder(item)]
                    yield folder, [item.name for item in items]
        except OSError as exc:
            # A folder that was removed since, or is not ours to read, hides its own features; an unreadable root all.
            if not folder and not isinstance(exc, FileNotFoundError):
                raise


def reconcile(root: Path, ledger: Ledger, journal: Journal) -> Table:
    """Every entry, as the files are now; only unknown and missing files are looked at.

    Writes a snapshot if the books were wrong, and sweeps abandoned files, where the store is writable.
    """
    with lease(root / naming.LEASE, timeout_s=LEASE_WAIT_S) as is_held:
        now_s = file_system_now_s(root)
        found = _listed(root, ledger, now_s)
        if is_held and found.is_sure and (found.is_changed or ledger.needs_folding):
            try:
                ledger.fold(journal, found.table, found.silences_s)
            except StoreWriteError:
                # A read-only store: this process knows the truth, others find it themselves.
                return found.table
            ledger.read()
        if is_held:
            sweep(root, now_s, found.foreign)
        return found.table


def looked_at(root: Path, ledger: Ledger, now_s: float) -> tuple[Table, dict[str, float]]:
    """Every entry as the files are now, and the silences of the journals; writes nothing, not even a lock."""
    found = _listed(root, ledger, now_s)
    return found.table, found.silences_s


def fold(root: Path, ledger: Ledger, own: Journal, silences_s: dict[str, float]) -> None:
    """Write a snapshot of what the books tell, after `read` and `settle`; of the files where the last is not sound.

    Raises:
        StoreWriteError: the operating system refused.
    """
    table = ledger.table()
    if table is None:
        # The changes alone would make a full store look nearly empty.
        found = _listed(root, ledger, file_system_now_s(root))
        if not found.is_sure:
            return  # left to whoever is at it now, or to the next time
        table = found.table
    ledger.fold(own, table, silences_s)


class _Listed(NamedTuple):
    table: Table  # corrected
    silences_s: dict[str, float]
    is_changed: bool  # the books were wrong
    is_sure: bool  # nobody wrote or deleted what the books and the files differ in
    foreign: list[str]  # names on disk that are no feature's


def _listed(root: Path, ledger: Ledger, now_s: float) -> _Listed:
    from cache_store import entry_table

    # Listed before the journals are read: what appears in between is known from them.
    on_disk = names_on_disk(root)
    packed, shard_entries = packed_on_disk(root, on_disk)
    for tries_left in reversed(range(_TRIES)):
        ledger.read()
        silences_s = ledger.silences_s(now_s)
        ledger.settle(silences_s)
        known = ledger.table()
        if known is None and ledger.is_outdated and tries_left:
            # Without locks another compactor may have replaced the snapshot between its first line and its table.
            continue
        books_alone = entry_table.merged(entry_table.from_entries({}), ledger.changes) if known is None else known
        books_alone, known_shards = entry_table.apart_from_shards(books_alone)
        unknown, gone = entry_table.differences(books_alone, _joined(on_disk, packed))
        features = [name for name in unknown if naming.is_feature(name)]
        found, lost = _corrections(root, features, gone, ledger.changes)
        # What came or went after the books were read is in a journal since, which will count it.
        is_sure = ledger.is_silent_about([*found, *lost])
        if is_sure:
            break
    table, is_corrected = _corrected(books_alone, found, lost), bool(found or lost)
    if shard_entries or known_shards:
        is_corrected = is_corrected or known_shards != {name: one.bytes for name, one in shard_entries.items()}
        table = entry_table.concatenated([table, entry_table.from_entries(shard_entries)])
    total_bytes = entry_table.sum_of_bytes(table) + ledger.changes.granted_bytes
    is_changed = known is None or is_corrected or total_bytes != ledger.total_bytes
    return _Listed(table, silences_s, is_changed, is_sure, list(set(unknown).difference(features)))


def sweep(root: Path, now_s: float, foreign: Iterable[str]) -> None:
    """Remove those of the store's own and the given files that are abandoned temporaries, and pins that are over.

    `now_s` is the file system's clock.
    """
    found = [name for name in foreign if name.rpartition("/")[2].startswith(naming.TEMP_PREFIX)]
    for folder in (naming.STORE_FOLDER, naming.JOURNALS, naming.RECIPES, naming.PINS, naming.PLANS):
        # A folder that is not there, or not ours, holds nothing to tidy.
        with contextlib.suppress(OSError):
            found += [f"{folder}/{name}" for name in os.listdir(root / folder) if name.startswith(naming.TEMP_PREFIX)]
    for name in found:
        _remove_if_stray(root / name, now_s)
    pins.sweep(root, now_s)


def _remove_if_stray(path: Path, now_s: float) -> None:
    try:
        if now_s - path.stat().st_mtime > STRAY_AFTER_S:
            path.unlink()
    except OSError:
        # Published or removed meanwhile.
        return


def _corrections(
    root: Path, unknown: list[str], gone: list[str], changes: Changes
) -> tuple[dict[str, Entry], list[str]]:
    """Of names that only the files or only the books have, those that the books lack and those that are lost."""
    # What a writer or evictor is about to say in its journal must not be counted twice.
    announced = changes.being_written
    found: dict[str, Entry] = {}
    for name in unknown:
        if name in announced:
            continue
        entry = entry_of(root, name)
        if entry is not None:
            fingerprint8 = entry.fingerprint8 or recorded_fingerprint8(f"{root}/{name}")
            found[name] = entry._replace(fingerprint8=fingerprint8, runs=changes.runs.get(name, ""))
    # It may have been published after the listing.
    return found, [name for name in gone if name not in announced and entry_of(root, name) is None]


def _corrected(table: Table, found: dict[str, Entry], lost: list[str]) -> Table:
    from cache_store import entry_table

    if lost:
        table = entry_table.without(table, lost)
    if found:
        table = entry_table.concatenated([table, entry_table.from_entries(found)])
    return table
