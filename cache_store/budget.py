"""Keeps the store under its limit: reserves room before a write, evicts what was used least recently."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from pathlib import Path

from cache_store import naming
from cache_store.accounts import Entry
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreFull, StoreWriteError
from cache_store.journal import Journal, line
from cache_store.lease import lease
from cache_store.ledger import Ledger
from cache_store.scan import load_known
from cache_store.usage import Usage

# Evicting a little more than needed spreads the cost of one pass over many puts.
LOW_WATER = 0.95
_LEASE_WAIT_S = 30.0
_RETRY_FOR_S = 10.0
_RETRY_EVERY_S = 0.05


class Budget:
    """The limit of one store, as one process enforces it. One thread at a time.

    Every writer first appends its reservation and then adds up everyone's: of two writers who reserve at the
    same moment at least one sees the other, so the published bytes never pass the limit.
    """

    def __init__(self, root: Path, ledger: Ledger, journal: Journal, usage: Usage, run_id: str | None) -> None:
        self._root = root
        self._ledger = ledger
        self._journal = journal
        self._usage = usage
        self._run_id = run_id
        self._queue: deque[tuple[int, str]] = deque()  # (last use, name), least recently used first
        self.limit_bytes: int | None = None

    def reserve(self, name: str, *, new_bytes: int, old_bytes: int) -> int:
        """Make sure that `name` may grow from `old_bytes` to `new_bytes`; returns the bytes reserved.

        The caller gives them back with its `p` line, or with `release`.

        Raises:
            StoreFull: larger than the limit, or nothing left that may be evicted. Nothing stays reserved.
            StoreWriteError: the journal cannot be written.
        """
        if self.limit_bytes is None:
            return 0
        if new_bytes > self.limit_bytes:
            raise StoreFull(
                "the entry alone is larger than the limit",
                limit_bytes=self.limit_bytes,
                needed_bytes=new_bytes,
            )
        reserved = max(0, new_bytes - old_bytes)
        self._journal.append(line("r", reserved, name))
        self._ledger.refresh()
        if self._ledger.total_bytes > self.limit_bytes:
            self._make_room(name, reserved)
        return reserved

    def release(self, name: str, reserved: int) -> None:
        """Give a reservation back after a failed write; never hides the error that made the caller do so."""
        if reserved:
            # On a full disk the reservation stays in the books until this process ends.
            with contextlib.suppress(StoreWriteError):
                self._journal.append(line("x", -reserved, name))

    def _make_room(self, name: str, reserved: int) -> None:
        limit_bytes = self.limit_bytes
        assert limit_bytes is not None, "only called under a limit"
        self._usage.flush()
        # A damaged snapshot shows only when its entries are read: without them nothing would seem to be
        # there.
        load_known(self._root, self._ledger, self._journal)
        deadline_s = time.monotonic() + _RETRY_FOR_S
        while True:
            with lease(self._root / naming.LEASE, timeout_s=_LEASE_WAIT_S):
                try:
                    if self._evict(name, limit_bytes):
                        return
                except BaseException:
                    self.release(name, reserved)
                    raise
                # Given back while waiting: two writers who each wait for the other's room would wait for
                # ever.
                self.release(name, reserved)
                self._ledger.refresh()
                others_bytes = self._ledger.accounts.reserved_bytes
            if not others_bytes or time.monotonic() > deadline_s:
                raise StoreFull(
                    "everything else belongs to active runs or is being written",
                    limit_bytes=limit_bytes,
                    needed_bytes=reserved,
                )
            time.sleep(_RETRY_EVERY_S)
            self._journal.append(line("r", reserved, name))

    def _evict(self, writing: str, limit_bytes: int) -> bool:
        """Unlink least recently used entries until the total fits; False when too little may go."""
        self._ledger.load()
        accounts = self._ledger.accounts
        silences = self._ledger.settle(file_system_now_s(self._root))
        active = accounts.active_runs(silences) | ({self._run_id} if self._run_id else set())
        kept_names = {writing}.union(*(tail.reserved for tail in accounts.tails.values()))
        low_water = int(limit_bytes * LOW_WATER)
        held: list[tuple[int, str]] = []
        is_fresh = False
        while self._ledger.total_bytes > low_water:
            must = self._ledger.total_bytes > limit_bytes
            if not self._queue:
                if is_fresh or not must:
                    break
                self._queue = deque(sorted((entry.used_us, name) for name, entry in accounts.entries.items()))
                held.clear()
                is_fresh = True
                continue
            used_us, name = self._queue.popleft()
            entry = accounts.entries.get(name)
            if entry is None or entry.used_us != used_us:
                continue  # gone, or used since the queue was sorted
            is_kept = name in kept_names or not active.isdisjoint(entry.runs.split(","))
            if is_kept:
                held.append((used_us, name))
                continue
            if not must and self._ledger.total_bytes - entry.bytes < low_water:
                # Optional evictions never take more than asked: one more large entry could be a third of the
                # store.
                held.append((used_us, name))
                break
            self._evict_one(name, entry)
        self._queue.extendleft(reversed(held))
        self._ledger.refresh()
        if self._ledger.error_of_sum:
            # So that writers who only add up changes see what this pass found out.
            self._journal.append(line("k", self._ledger.error_of_sum))
            self._ledger.refresh()
        return self._ledger.total_bytes <= limit_bytes

    def _evict_one(self, name: str, entry: Entry) -> None:
        path = self._root / name
        accounts = self._ledger.accounts
        try:
            status = os.stat(path)
            if status.st_size != entry.bytes or status.st_mtime_ns // 1000 > entry.written_us + 1_000_000:
                # Rewritten since the journals last spoke of it: no longer the least recently used.
                written_us = status.st_mtime_ns // 1000
                seen = entry._replace(bytes=status.st_size, written_us=written_us, used_us=written_us)
                accounts.set_entry(name, seen)
                return
            os.unlink(path)
        except FileNotFoundError:
            # Removed by hand or by another process whose line is still to come: only the books are wrong.
            accounts.forget_entry(name)
            return
        except OSError as exc:
            raise StoreWriteError(str(path), exc) from exc
        self._usage.evicted(name)
        self._journal.append(line("d", -entry.bytes, name))
        # At once, though the line will be read back: reading it after each victim would cost more than the
        # unlink.
        accounts.forget_entry(name)
