"""Moves small loose files into shards. A file goes only when the shard, read back from the disk, holds its bytes.

The shard is published with rows that do not count. Then each file is taken out of the way if it is still the one that
was read, its row is made to count, and the file is removed. At any moment a feature is a loose file, a taken one or a
row, and only one version of it counts, whoever puts, deletes, packs or dies meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cache_store import archive, naming, shard_index, shards
from cache_store.books import Books
from cache_store.dataset_patterns import DatasetPatterns
from cache_store.errors import DamagedFeature, StoreReadError, StoreWriteError
from cache_store.journal import line, now_us
from cache_store.lease import lease
from cache_store.reports import Problem
from cache_store.rewriting import Rewriter, drop_doubles, merge, rewrite_and_note, waste_bytes
from cache_store.scan import loose_names
from cache_store.shard_file import Row, Shard, encoded
from cache_store.shards import Place
from cache_store.taking import Identity, identity_of, put_back, put_back_all, take

SHARD_BYTES = 64 << 20
# Rewritten when this share of a shard is dead: each byte freed costs one that is copied.
REWRITE_FROM_SHARE = 0.5
_WAIT_S = 600.0


@dataclass
class PackReport:
    """What `pack` or `unpack` did; with `dry_run`, what it would do."""

    files: int = 0
    bytes: int = 0  # of the files, as they are when loose
    shards: int = 0
    freed_bytes: int = 0  # of dead rows
    merged: int = 0  # small shards that are parts of larger ones by now
    problems: list[Problem] = field(default_factory=list)  # files that stay where they are
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "problems": [vars(problem) for problem in self.problems]}


class PackProgress(NamedTuple):
    """How far `pack` or `unpack` is."""

    files: int
    total_files: int
    bytes: int
    problems: int


Told = Callable[[PackProgress], None] | None


class _Found(NamedTuple):
    name: str
    identity: Identity
    changed_ns: int
    fingerprint8: str


def pack(
    root: Path, books: Books, datasets: tuple[str, ...] | None, progress: Told, *, keep: bool, dry_run: bool
) -> PackReport:
    """Pack the small features of these data sets, or of all; one shard of files is in memory at a time.

    Damaged files stay and are named. With `keep` the loose files stay as well.

    Raises:
        StoreFull: no room for the next shard's frame, or with `keep` for all of it.
        StoreReadError, StoreWriteError: the disk failed; what is packed is packed, and a second run goes on.
    """
    report = PackReport(dry_run=dry_run)
    # Only one at a time, to save work: without a lock that works two would read the same files.
    with contextlib.nullcontext() if dry_run else lease(root / naming.PACK_LEASE, timeout_s=_WAIT_S):
        if not dry_run:
            mend(root, books)
        _pack_files(root, books, datasets, progress, report, keep=keep)  # whose names are gone before the index is made
        if not dry_run:
            report.freed_bytes += tidy(root, books)
            report.merged = merge(root, books.journal, most_bytes=SHARD_BYTES)
            shard_index.write(root)
    return report


def _pack_files(
    root: Path, books: Books, datasets: tuple[str, ...] | None, progress: Told, report: PackReport, *, keep: bool
) -> None:
    names = _wanted(root, datasets, packed_too=not keep)
    if not keep:
        names = _movable(root, names, report)
    groups = list(_groups(root, names))
    total = sum(map(len, groups))
    for group in groups:
        if report.dry_run:
            report.files += len(group)
            report.bytes += sum(os.path.getsize(root / name) for name in group)
            report.shards += 1
        else:
            _Packing(root, books, report, keep=keep).pack(group)
        if progress is not None:
            progress(PackProgress(report.files, total, report.bytes, len(report.problems)))


def mend(root: Path, books: Books) -> None:
    """Put back what packers that died had taken, take out what rewriters that died left twice, and count all of it.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    put_back_all(root)
    drop_doubles(root)
    with books.reconciled():  # a shard of which its writer journalled nothing would be taken off the sums, never added
        pass


def tidy(root: Path, books: Books, *, wanted_bytes: int = 0) -> int:
    """Rewrite shards that are mostly dead, and others until `wanted_bytes` are free; returns the bytes that this freed.

    Raises:
        StoreWriteError: the operating system refused.
    """
    rewriter, freed_bytes = Rewriter(root, books.journal), 0
    while freed := rewriter.rewrite_worst(from_share=0.0 if freed_bytes < wanted_bytes else REWRITE_FROM_SHARE):
        freed_bytes += freed
    return freed_bytes


def _wanted(root: Path, datasets: tuple[str, ...] | None, *, packed_too: bool) -> list[str]:
    patterns = None if datasets is None else DatasetPatterns(datasets)
    view = shards.of(root).view()
    chosen = []
    for name in loose_names(root):
        if patterns is not None:
            parsed = naming.parse(name)
            if parsed is None or not patterns.matches(parsed.dataset, parsed.fingerprint8):
                continue
        if packed_too or not _is_kept(root, name, view.find(name)):
            chosen.append(name)
    # By name, so that what is read together, and goes together, lies together.
    return sorted(chosen)


def _movable(root: Path, names: list[str], report: PackReport) -> list[str]:
    """Those that a rename can bring where shards lie; files of a folder that links to another file system are named.

    Raises:
        StoreReadError: the operating system refused.
    """
    packed = root / naming.PACKED
    try:
        device = os.stat(packed if packed.exists() else root).st_dev
    except OSError as exc:
        raise StoreReadError(str(packed), exc) from exc
    elsewhere = set()
    for folder in {name.rpartition("/")[0] for name in names}:
        with contextlib.suppress(OSError):  # gone meanwhile, and its files with it
            if os.stat(root / folder).st_dev != device:
                elsewhere.add(folder)
    reason = "its folder is on another file system than the store's shards; it stays loose"
    report.problems += [Problem(name, reason) for name in names if name.rpartition("/")[0] in elsewhere]
    return [name for name in names if name.rpartition("/")[0] not in elsewhere]


def _is_kept(root: Path, name: str, place: Place | None) -> bool:
    """Whether a loose file's version is packed already, as after an earlier run that kept the files."""
    if place is None:
        return False
    with contextlib.suppress(OSError):
        status = os.stat(root / name)
        return (status.st_size, status.st_mtime_ns) == (place.bytes, int(place.shard.written_ns[place.row]))
    return False


def _groups(root: Path, names: list[str]) -> Iterator[list[str]]:
    """Names of small files, as many at a time as go into a shard."""
    group: list[str] = []
    group_bytes = 0
    for name in names:
        try:
            size = os.stat(f"{root}/{name}").st_size
        except OSError:
            continue
        if not naming.is_small(size):
            continue
        if group and group_bytes + size > SHARD_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += size
    if group:
        yield group


class _Packing:
    """One shard's way from loose files to rows that count."""

    def __init__(self, root: Path, books: Books, report: PackReport, *, keep: bool) -> None:
        self._root = root
        self._books = books
        self._report = report
        self._keep = keep

    def pack(self, names: list[str]) -> None:
        found: list[_Found] = []
        rows: list[Row] = []
        for name in names:
            self._read(name, found, rows)
        if not rows:
            return
        buffers, name = encoded(rows), naming.shard_name()
        new_bytes = sum(map(len, buffers))
        if not self._keep:
            new_bytes -= sum(len(row.content) for row in rows)  # whose files will go: only the shard's frame is new
        claimed_bytes = self._books.publish_shard(name, buffers, new_bytes, may_evict=not self._keep)
        del buffers
        shard = _read_back(self._root / name, rows)
        try:
            packed = self._kept(shard, found) if self._keep else self._moved(shard, found)
        finally:
            waste, time_us = waste_bytes(shard), now_us()
            if self._keep:
                waste = shard.file_bytes
            self._books.journal.append(
                line("p", waste - claimed_bytes, waste, time_us, "", "", claimed_bytes, name, time_us=time_us)
            )
        if not self._keep and len(packed) < len(found):
            self._without_dead_rows(shard)
        self._report.files += len(packed)
        self._report.bytes += sum(found[row].identity[2] for row in packed)
        self._report.shards += 1

    def _without_dead_rows(self, shard: Shard) -> None:
        """Under a limit at once: what went meanwhile, as to make room for the shard itself, has no room in it."""
        if self._books.budget.limits.limit_bytes is not None:
            self._report.freed_bytes += rewrite_and_note(self._root, [shard], self._books.journal) or 0

    def _read(self, name: str, found: list[_Found], rows: list[Row]) -> None:
        path = f"{self._root}/{name}"
        try:
            status = os.stat(path)
            with archive.open_archive(path) as opened:
                content, record = archive.sound_content(opened)
            if identity_of(os.stat(path)) != identity_of(status) or len(content) != status.st_size:
                return  # replaced meanwhile: the next run packs it
        except FileNotFoundError:
            return
        except (DamagedFeature, StoreReadError) as exc:
            self._report.problems.append(Problem(name, exc.reason))
            return
        except OSError as exc:
            self._report.problems.append(Problem(name, f"cannot be read: {exc.strerror or exc}"))
            return
        fingerprint8 = ((record.recipe_fingerprint if record is not None else None) or "")[:8]
        found.append(_Found(name, identity_of(status), status.st_ctime_ns, fingerprint8))
        rows.append(Row(name, content, status.st_mtime_ns, status.st_ctime_ns, fingerprint8))

    def _moved(self, shard: Shard, found: list[_Found]) -> list[int]:
        """Make rows count in the place of their files, and remove these; returns the rows that do."""
        folder = self._root / naming.taken_folder()
        taken: list[int] = []
        # The same version too, packed by a run that kept the file: its file is about to go.
        older = self._older(shard, found, same=True)
        try:
            for row, one in enumerate(found):
                if take(self._root, one.name, folder, one.identity):
                    taken.append(row)
                    shards.supersede(older.get(row, []))
        finally:
            # Also after an error: what has been taken is packed, what has not is left alone.
            packed = self._settled(shard, found, taken, folder)
        return packed

    def _settled(self, shard: Shard, found: list[_Found], taken: list[int], folder: Path) -> list[int]:
        """Make the rows of taken files count, and then remove these; what cannot be done is left to the next packer."""
        shard.mark("live", taken, flush=True)
        shard.mark("dead", sorted(set(range(len(found))).difference(taken)))
        is_in_place, counting = shard.has_its_name(), shard.counting()
        packed = [row for row in taken if is_in_place and counting[row]]
        try:
            for row in packed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{found[row].name}")
            for row in sorted(set(taken).difference(packed)):
                # Put or deleted meanwhile, and then the taken file is gone too; else nothing may be lost.
                with contextlib.suppress(FileNotFoundError):
                    put_back(self._root, found[row].name, folder)
        except OSError as exc:
            raise StoreWriteError(str(folder), exc) from exc
        remove_folders(folder)
        return packed

    def _kept(self, shard: Shard, found: list[_Found]) -> list[int]:
        """Make rows count beside their files, which hide them; returns the rows that do."""
        for places in self._older(shard, found).values():
            shards.supersede(places)
        shard.mark("live", range(len(found)), flush=True)
        stale = [row for row, one in enumerate(found) if not self._is_there(one)]
        shard.mark("dead", stale)
        return sorted(set(range(len(found))).difference(stale))

    def _older(self, shard: Shard, found: list[_Found], *, same: bool = False) -> dict[int, list[Place]]:
        """By row the older versions of its feature in other shards, where there are any, or also the `same`."""
        view, older = shards.of(self._root).view(), {}
        for row in view.not_alone(shard, [one.name for one in found]):
            own = Place(shard, row).version
            others = [place for place in view.places(found[row].name) if place.shard.id != shard.id]
            older[row] = [place for place in others if place.version < own or (same and place.version[0] == own[0])]
        return older

    def _is_there(self, one: _Found) -> bool:
        try:
            return identity_of(os.stat(self._root / one.name)) == one.identity
        except OSError:
            return False


def _read_back(path: Path, rows: list[Row]) -> Shard:
    """The shard as the disk has it, every byte compared.

    Raises:
        StoreWriteError: it does not hold what was written.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        shard = Shard(path)
        contents = (shard.content(place) == row.content for place, row in enumerate(rows))
        if shard.names() == [row.name for row in rows] and all(contents):
            shard.forget_pages()
            return shard
        reason = "it does not read back as it was written"
    except (DamagedFeature, StoreReadError) as exc:
        reason = exc.reason
    except OSError as exc:
        reason = exc.strerror or str(exc)
    raise StoreWriteError(str(path), OSError(None, reason))


def remove_folders(folder: Path) -> None:
    """Remove the emptied folder of taken files; what is left in it is put back by the next packer."""
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)
