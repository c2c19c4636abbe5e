"""Rewrites shards whose rows are dead, so that their bytes become free; what counts in them moves to a new shard.

The new shard is published with rows that do not count yet. Then what counts in the old one, which is still there,
is copied: whoever deletes a feature marks it in both from then on. The old shard goes last.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from cache_store import naming, shards
from cache_store.atomic import flush_folder, publish
from cache_store.clock import file_system_now_s
from cache_store.errors import DamagedFeature, StoreReadError, StoreWriteError
from cache_store.journal import Journal, Line, line, now_us
from cache_store.shard_file import Row, Shard, encoded

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
        freed_bytes = rewrite_and_note(self._root, worst, self._journal)
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


def rewrite(root: Path, old: Shard) -> list[Shard] | None:
    """Put a shard with what counts, or none, in the old one's place; None where that is not possible now.

    Raises:
        StoreWriteError: the operating system refused.
    """
    live, dead = old.states()
    # Someone may be packing into it. Who died over that left its files under their names, or soon to be put back.
    if not (live | dead).all() and not _is_stray(root, old):
        return None
    new: list[Shard] = []
    rows = np.flatnonzero(live & ~dead).tolist()
    try:
        if rows:
            new = [_published(root, old, rows)]
            counting = old.counting()
            if not old.has_its_name():
                raise FileNotFoundError(old.path)
            new[0].mark("live", [place for place, row in enumerate(rows) if counting[row]], flush=True)
            new[0].mark("dead", [place for place, row in enumerate(rows) if not counting[row]])
        if not _removed(old, set(rows)):
            return None
    except FileNotFoundError:
        # Another rewriter was first.
        _drop(new)
        return None
    except DamagedFeature:
        # Not copied as if it were sound: `verify` names it.
        return None
    except StoreReadError as exc:
        raise StoreWriteError(str(old.path), OSError(exc.errno, exc.reason)) from exc
    except OSError as exc:
        raise StoreWriteError(str(old.path), exc) from exc
    shards.of(root).forget()
    return new


def _published(root: Path, old: Shard, rows: list[int]) -> Shard:
    copies = []
    for row in rows:
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


def rewrite_and_note(root: Path, old: Shard, journal: Journal) -> int | None:
    """As `rewrite`, journalled; returns the bytes freed, None where it is not possible now.

    Raises:
        StoreWriteError: the operating system refused.
    """
    new = rewrite(root, old)
    if new is None:
        return None
    journal.append(gone_line(old), *map(shard_line, new))
    return old.file_bytes - sum(shard.file_bytes for shard in new)


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
