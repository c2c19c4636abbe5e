"""Keeps the store under its limit: room is granted before a write, and made by evicting where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache_store import naming
from cache_store.errors import StoreFull, StoreWriteError
from cache_store.journal import Journal, Line, line
from cache_store.lease import lease
from cache_store.ledger import Ledger
from cache_store.settings import Settings
from cache_store.usage import Usage

if TYPE_CHECKING:
    from cache_store.evictor import Evictor

# Room is granted ahead, for many small puts at once; idle processes hold no more than a thousandth of the limit each.
_GRANT_BYTES = 16 << 20
_GRANT_SHARE = 1024
# Evicting a little more than needed spreads the cost of one pass over many puts: this share of the limit, or as much as
# a few grants if that is less, so that nobody waits for thousands of unlinks.
_SPARE_SHARE = 20
_SPARE_GRANTS = 4
_LEASE_WAIT_S = 30.0
_RETRY_FOR_S = 10.0
_RETRY_EVERY_S = 0.05


class Growth(NamedTuple):
    """A file about to be written, and by how many bytes it grows."""

    name: str
    bytes: int


class Budget:
    """The limits of one store, as one process enforces them. One thread at a time.

    The limit is never passed; above the soft limit eviction begins without making a writer wait. Every writer
    first journals its grant and then adds up everyone's: of two who ask at the same moment at least one sees the
    other, so the published bytes never pass the limit.
    """

    def __init__(self, root: Path, ledger: Ledger, journal: Journal, usage: Usage, run_id: str | None) -> None:
        self._root = root
        self._ledger = ledger
        self._journal = journal
        self._usage = usage
        self._run_id = run_id
        self._evictor: Evictor | None = None
        self._granted = 0
        self._granted_in = journal.generation
        self._has_spare = True  # evicting before it was needed made room the last time
        self.limits = Settings()

    def claim(self, files: Sequence[Growth], *, may_evict: bool = True) -> None:
        """Make sure that the files may grow, and announce them; the caller publishes and says so, or `release`s.

        Raises:
            StoreFull: larger than the limit, or nothing left that may be evicted. Nothing stays claimed.
            StoreWriteError: the journal cannot be written.
        """
        if self.limits.limit_bytes is None:
            return
        if self._granted_in != self._journal.generation:
            self._granted = 0  # the journal that said so was taken for a dead process's
        needed_bytes = sum(file.bytes for file in files)
        announced = line("w", 0, *(file.name for file in files))
        missing_bytes = needed_bytes - self._granted
        if missing_bytes <= 0:
            self._journal.append(announced)
            if self._granted_in != self._journal.generation:
                self._granted, missing_bytes = 0, needed_bytes  # as above, noticed by the append
        if missing_bytes > 0:
            self._grant(missing_bytes, announced, may_evict=may_evict)
        self._granted -= needed_bytes

    def release(self, files: Iterable[Growth]) -> None:
        """Give up files that could not be written; never hides the error that made the caller do so."""
        if self.limits.limit_bytes is None:
            return
        self._granted += sum(file.bytes for file in files)
        # On a full disk they stay announced until this process ends.
        with contextlib.suppress(StoreWriteError):
            self._journal.append(line("x", 0, *(file.name for file in files)))

    def give_back(self) -> int:
        """Give up the grant; returns its bytes, which the journal's last line takes back."""
        granted = self._granted if self._granted_in == self._journal.generation else 0
        self._granted = 0
        return granted

    def _grant(self, missing_bytes: int, announced: Line, *, may_evict: bool) -> None:
        limit_bytes = self.limits.limit_bytes
        assert limit_bytes is not None, "only called under a limit"
        if self._granted + missing_bytes > limit_bytes:
            raise StoreFull(
                "that alone is larger than the limit",
                limit_bytes=limit_bytes,
                needed_bytes=self._granted + missing_bytes,
            )
        asked_bytes = max(missing_bytes, _grant_ahead(limit_bytes) if may_evict else 0)
        before = self._journal.generation
        self._journal.append(line("r", asked_bytes), announced)
        if before != self._journal.generation:
            self._granted = 0  # the earlier grant went with the earlier journal; the next claim asks for more
        self._granted_in = self._journal.generation
        self._granted += asked_bytes
        self._ledger.refresh()
        if not may_evict:
            if self._ledger.total_bytes > limit_bytes:
                self._give_up(missing_bytes, announced)
                reason = "copies of what the store has already evict nothing"
                raise StoreFull(reason, limit_bytes=limit_bytes, needed_bytes=missing_bytes)
            return
        if self._ledger.total_bytes > limit_bytes and asked_bytes > missing_bytes:
            if self._has_spare and self._evict_unasked(limit_bytes, announced, may_fold=False):
                return
            self._change_grant(missing_bytes - asked_bytes)
            self._ledger.refresh()
        if self._ledger.total_bytes > limit_bytes:
            self._make_room(missing_bytes, announced)
        elif self.limits.soft_limit_bytes is not None and self._ledger.total_bytes > self.limits.soft_limit_bytes:
            self._evict_unasked(self.limits.soft_limit_bytes, announced, may_fold=True)

    def _evict_unasked(self, goal_bytes: int, announced: Line, *, may_fold: bool) -> bool:
        """Evict before it is needed, if nobody else does; returns whether the store fits the goal now."""
        with lease(self._root / naming.LEASE, timeout_s=0.0) as is_held:
            if not is_held:
                return False
            self._usage.flush()
            is_reached = self._evict(goal_bytes, announced, may_fold=may_fold)
        if not may_fold:
            self._has_spare = is_reached
        return is_reached

    def _change_grant(self, change: int) -> None:
        self._journal.append(line("r", change))
        self._granted += change

    def _make_room(self, missing_bytes: int, announced: Line) -> None:
        limit_bytes = self.limits.limit_bytes
        assert limit_bytes is not None, "only called under a limit"
        self._usage.flush()
        deadline_s = time.monotonic() + _RETRY_FOR_S
        while True:
            with lease(self._root / naming.LEASE, timeout_s=_LEASE_WAIT_S):
                try:
                    if self._evict(limit_bytes, announced):
                        self._has_spare = True
                        return
                except BaseException:
                    self._give_up(missing_bytes, announced)
                    raise
                # Given back while waiting: two writers who each wait for the other's room would wait for ever.
                self._give_up(missing_bytes, announced)
                self._ledger.read()
                others_bytes = self._ledger.changes.granted_bytes
            if not others_bytes or time.monotonic() > deadline_s:
                raise StoreFull(
                    "everything else is pinned, held by readers, belongs to active runs or is being written",
                    limit_bytes=limit_bytes,
                    needed_bytes=missing_bytes,
                )
            time.sleep(_RETRY_EVERY_S)
            self._journal.append(line("r", missing_bytes), announced)
            self._granted += missing_bytes

    def _give_up(self, missing_bytes: int, announced: Line) -> None:
        with contextlib.suppress(StoreWriteError):
            self._journal.append(announced._replace(kind="x"))
            self._change_grant(-missing_bytes)

    def _evict(self, goal_bytes: int, announced: Line, *, may_fold: bool = True) -> bool:
        soft_bytes = min(goal_bytes, self.limits.soft_limit_bytes or goal_bytes)
        if self._evictor is None:
            from cache_store.evictor import Evictor  # imports Arrow, which a store that is not full does without

            self._evictor = Evictor(self._root, self._ledger, self._journal, self._usage, self._run_id)
        spare_bytes = min(soft_bytes // _SPARE_SHARE, _SPARE_GRANTS * max(self._granted, _grant_ahead(goal_bytes)))
        writing = announced.fields.split("\t")
        return self._evictor.make_fit(goal_bytes, soft_bytes - spare_bytes, writing=writing, may_fold=may_fold)


def _grant_ahead(limit_bytes: int) -> int:
    return min(_GRANT_BYTES, limit_bytes // _GRANT_SHARE)
