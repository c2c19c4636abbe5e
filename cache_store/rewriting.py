"""Rewrites shards whose rows are dead, so that their bytes become free, and merges small ones, all into new shards.

The new shard is published with rows that do not count yet. Then what counts in the old one, which is still there,
is copied: whoever deletes a feature marks it in both from then on. The old shard goes last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache_store import naming, shards
from cache_store.atomic import flush_folder, publish
from cache_store.clock import file_system_now_s
from cache_store.errors import DamagedFeature, StoreReadError, StoreWriteError
from cache_store.journal import Journal, Line, line, now_us
from cache_store.shard_file import Row, Shard, encoded
from cache_store.shards import Place

_STRAY_AFTER_S = 3600.0


class Rewriter:
    """Frees the dead bytes of one store's shards. One thread at a time; needs no lock."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self._root = root
        self._journal = journal
        self._refused: set[str] = set()  # shards that cannot be rewritten now

    def dead_bytes(self) -> int:
        """Bytes of dead rows, which rewriting would free."""
        return sum(map(dead_bytes, self._candidates()))

    def rewrite_worst(self, *, from_share: float = 0.0) -> int:
        """Rewrite the shard with the largest dead share, if it is above `from_share`; returns the bytes freed.

        Raises:
            StoreWriteError: the operating system refused.
        """
        worst = max(self._candidates(), key=_dead_share, default=None)
        if worst is None or _dead_share(worst) <= from_share:
            return 0
        freed_bytes = rewrite_and_note(self._root, [worst], self._journal)
        if freed_bytes is None:
            self._refused.add(worst.id)
            return self.rewrite_worst(from_share=from_share)
        return max(1, freed_bytes)

    def _candidates(self) -> list[Shard]:
        return [shard for shard in shards.of(self._root).view().shards if shard.id not in self._refused]


def dead_bytes(shard: Shard) -> int:
    """Bytes of its dead rows, which rewriting would free."""
    return int(shard.bytes[shard.states()[1]].sum())


def _dead_share(shard: Shard) -> float:
    return dead_bytes(shard) / max(1, shard.file_bytes)


def drop_doubles(root: Path) -> None:
    """Mark rows dead that count beside a newer one, as where a rewriter died before the old shard went.

    Only in shards that nobody has changed for an hour: of others a rewriter may be about to remove either one.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    view = shards.View([shard for shard in shards.of(root).view().shards if _is_stray(root, shard)])
    counting = [shard.counting() for shard in view.shards]  # before the newest are looked for: a later one is newer
    for shard, counts, is_newest in zip(view.shards, counting, view.winners(), strict=True):
        if (is_double := counts & ~is_newest).any():
            shard.mark("dead", np.flatnonzero(is_double).tolist())


class Rewritten(NamedTuple):
    """Which shards are gone, and those, one or none, that have what counted in them."""

    gone: list[Shard]
    new: list[Shard]


def rewrite(root: Path, olds: Sequence[Shard]) -> Rewritten | None:
    """Put a shard with what counts, or none, in the place of others; None where that is not possible now.

    Raises:
        StoreWriteError: the operating system refused.
    """
    copied = {}
    for old in olds:
        live, dead = old.states()
        # Someone may be packing into it. Who died over that left its files under their names, or soon to be put back.
        if not (live | dead).all() and not _is_stray(root, old):
            return None
        copied[old] = np.flatnonzero(live & ~dead).tolist()
    rows = [Place(old, row) for old, rows in copied.items() for row in rows]
    if len(olds) > 1:
        newest = dict(zip(olds, shards.View(olds).winners(), strict=True))
        # In the order in which they are packed; what a rewriter that died left twice is there once from now on.
        rows = sorted((row for row in rows if newest[row.shard][row.row]), key=lambda row: row.shard.name(row.row))
    new: list[Shard] = []
    gone: list[Shard] = []
    path = olds[0].path
    try:
        if rows:
            new = [_published(root, rows)]
            counting = {old: old.counting() for old in olds}
            if not all(old.has_its_name() for old in olds):
                raise FileNotFoundError(path)
            still = [place for place, (old, row) in enumerate(rows) if counting[old][row]]
            new[0].mark("live", still, flush=True)
            new[0].mark("dead", sorted(set(range(len(rows))).difference(still)))
        for old in olds:
            path = old.path
            try:
                if _removed(old, set(copied[old])):
                    gone.append(old)
            except FileNotFoundError:
                # Another rewriter was first. Of several, what it copied of this one is there twice until it is noticed.
                if not gone:
                    raise
    except FileNotFoundError:
        _drop(new)
        return None
    except DamagedFeature:
        # Not copied as if it were sound: `verify` names it.
        return None
    except StoreReadError as exc:
        raise StoreWriteError(str(path), OSError(exc.errno, exc.reason)) from exc
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    shards.of(root).forget()
    return Rewritten(gone, new) if gone else None


def _published(root: Path, places: Sequence[Place]) -> Shard:
    copies = []
    for old, row in places:
        problem = old.problem(row)
        if problem is not None:
            raise DamagedFeature(str(old.path), problem)
        changed_ns, written_ns = int(old.changed_ns[row]), int(old.written_ns[row])
        content = bytes(old.content(row))
        copies.append(Row(old.name(row), content, written_ns, changed_ns, old.fingerprint8(row)))
    path = root / naming.shard_name()
    publish(encoded(copies), path)
    return Shard(path)


def _removed(old: Shard, copied: set[int]) -> bool:
    """Unlink a shard of which these rows are elsewhere; False when more rows count by now."""
    aside = old.path.parent / naming.temp_name()
    os.rename(old.path, aside)
    # Under no name nobody can make rows count any more; what does so by now was made to before.
    if not copied.issuperset(np.flatnonzero(old.counting()).tolist()):
        os.rename(aside, old.path)
        return False
    os.unlink(aside)
    flush_folder(old.path.parent)
    return True


def _is_stray(root: Path, shard: Shard) -> bool:
    with contextlib.suppress(OSError):
        return file_system_now_s(root) - os.stat(shard.path).st_mtime > _STRAY_AFTER_S
    return False


def _drop(new: list[Shard]) -> None:
    for shard in new:
        with contextlib.suppress(OSError):
            os.unlink(shard.path)


def rewrite_and_note(root: Path, olds: Sequence[Shard], journal: Journal) -> int | None:
    """As `rewrite`, journalled; returns the bytes freed, None where it is not possible now.

    Raises:
        StoreWriteError: the operating system refused.
    """
    done = rewrite(root, olds)
    if done is None:
        return None
    journal.append(*map(gone_line, done.gone), *map(shard_line, done.new))
    return sum(shard.file_bytes for shard in done.gone) - sum(shard.file_bytes for shard in done.new)


def merge(root: Path, journal: Journal, *, most_bytes: int) -> int:
    """Make one shard, of `most_bytes` at most, of several that are less than half as large; returns how many went.

    Raises:
        StoreWriteError: the operating system refused.
    """
    small = [shard for shard in shards.of(root).view().shards if shard.rows and shard.file_bytes < most_bytes // 2]
    small.sort(key=lambda shard: shard.name(0))  # by name, so that what is read together lies together
    merged = 0
    while small:
        group = [small.pop(0)]
        while small and sum(shard.file_bytes for shard in (*group, small[0])) <= most_bytes:
            group.append(small.pop(0))
        if len(group) > 1 and rewrite_and_note(root, group, journal) is not None:
            merged += len(group)
    return merged


def gone_line(shard: Shard) -> Line:
    """The line that says that a shard is gone; what counted in it lies elsewhere."""
    return line("d", -waste_bytes(shard), 0, f"{naming.PACKED}/{shard.id}")


def shard_line(shard: Shard) -> Line:
    """The line that says that there is a new shard."""
    waste, time_us = waste_bytes(shard), now_us()
    return line("p", waste, waste, time_us, "", "", 0, f"{naming.PACKED}/{shard.id}", time_us=time_us)


def waste_bytes(shard: Shard) -> int:
    """The bytes of a shard that are no feature's."""
    return shard.file_bytes - int(shard.bytes[shard.counting()].sum())
