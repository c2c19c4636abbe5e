"""One process's hand on the accounting: what it writes is reserved, published and deleted through here."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_store import naming
from cache_store.accounts import Accounts
from cache_store.atomic import publish
from cache_store.budget import Budget
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal, line, now_us
from cache_store.lease import lease
from cache_store.ledger import Ledger
from cache_store.scan import load_known, reconcile
from cache_store.usage import Usage

_FOLD_CHECK_EVERY_PUTS = 1024

logger = logging.getLogger("cache_store")


class Books:
    """Journal, usage, ledger and budget of one store in one process. For its threads, not a forked child."""

    def __init__(self, root: Path, run_id: str | None, limit_bytes: int | None) -> None:
        self._root = root
        self._run_id = run_id
        self._lock = threading.RLock()
        self._puts = 0
        self.journal = Journal(root / naming.JOURNALS, run_id)
        self.usage = Usage(self.journal)
        self._ledger = Ledger(root)
        self._budget = Budget(root, self._ledger, self.journal, self.usage, run_id)
        self._budget.limit_bytes = limit_bytes
        if run_id is not None:
            # The open journal is what makes a run active, also for a driver that itself puts nothing. A
            # reader of a read-only store has no entries to protect.
            with contextlib.suppress(StoreWriteError):
                self.journal.append()

    @property
    def limit_bytes(self) -> int | None:
        return self._budget.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int | None) -> None:
        self._budget.limit_bytes = limit_bytes

    def publish(self, name: str, data: memoryview, fingerprint8: str) -> None:
        """Write a feature under its name within the limit, and journal it.

        Raises:
            StoreFull, StoreWriteError: nothing was published.
        """
        path = self._root / name
        new_bytes = data.nbytes
        with self._lock:
            if self._budget.limit_bytes is not None:
                self._know_files()
            reserved = self._budget.reserve(name, new_bytes=new_bytes, old_bytes=size_of(path))
        try:
            old_bytes = size_of(path)
            publish([data], path)
        except BaseException:
            self._budget.release(name, reserved)
            raise
        change = new_bytes - old_bytes - reserved
        run_id = self._run_id or ""
        self.journal.append(
            line("p", change, new_bytes, now_us(), fingerprint8, run_id, reserved, name),
        )
        self._count_put()

    def delete(self, name: str) -> bool:
        """Unlink a feature and journal it; False when there was none.

        Raises:
            StoreWriteError: the operating system refused.
        """
        path = self._root / name
        size = size_of(path)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            raise StoreWriteError(str(path), exc) from exc
        self.journal.append(line("d", -size, name))
        return True

    def protect(self, names: list[str], run_id: str) -> None:
        """Mark existing entries as the run's."""
        with self.loaded():
            # Loaded first: a mark on an entry that the accounts do not know would be lost.
            self.journal.append(*(line("m", 0, run_id, name) for name in names))

    @contextmanager
    def loaded(self) -> Iterator[Accounts]:
        """All accounts as the journals tell them; the files are listed only if nobody ever did."""
        with self._lock:
            load_known(self._root, self._ledger, self.journal)
            yield self._ledger.accounts

    @contextmanager
    def reconciled(self) -> Iterator[Accounts]:
        """All accounts, corrected by a listing of the files."""
        self.usage.flush()
        with self._lock:
            reconcile(self._root, self._ledger, self.journal)
            yield self._ledger.accounts

    def close(self) -> None:
        """Write what is in memory and say that this process is done; a later event opens a new journal."""
        self.usage.flush()
        with self._lock:
            self._ledger.refresh()
            self._fold_if_due()
        self.journal.close()

    def _know_files(self) -> None:
        # A snapshot's absence means that features may lie here that no journal ever mentioned.
        if not self._ledger.has_snapshot:
            self._ledger.refresh()
        if not self._ledger.has_snapshot:
            reconcile(self._root, self._ledger, self.journal)

    def _count_put(self) -> None:
        with self._lock:
            self._puts += 1
            if self._budget.limit_bytes is None:
                if self._puts % _FOLD_CHECK_EVERY_PUTS:
                    return
                self._ledger.refresh()
            self._fold_if_due()

    def _fold_if_due(self) -> None:
        if not self._ledger.needs_folding:
            return
        self._know_files()  # takes the lease itself, so not while holding it
        with lease(self._root / naming.LEASE, timeout_s=0.0) as is_held:
            if not is_held:
                return  # whoever holds it does the work
            try:
                self._ledger.load()
                if self._ledger.needs_folding:
                    self._ledger.fold(self.journal, file_system_now_s(self._root))
            except StoreWriteError as exc:
                # The features are safe, only the journals stay long; a disk that is full fails the next put.
                logger.warning("the journals could not be folded: %s", exc)


def size_of(path: Path) -> int:
    """`st_size`, 0 when there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        # Missing, or unreachable: the write that follows says why.
        return 0
