"""A store that is only asked, for plans: by construction it cannot write, lock, count or remember anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from cache_store import naming, settings, shards
from cache_store.books import View
from cache_store.ledger import Ledger
from cache_store.lookup import Lookup
from cache_store.scan import looked_at
from cache_store.settings import Settings


class ReadOnlyStore(Lookup):
    """The features under `root` at one moment, that of the first question about them all. A missing folder has none.

    `root` may be a URL: then the service is asked; copies on this machine are left as they are, and none is made.

    Raises:
        StoreFormatError: `root` cannot be a store.
    """

    def __new__(cls, root: str | os.PathLike[str]) -> ReadOnlyStore:
        if cls is ReadOnlyStore and naming.is_url(root):
            from cache_store.remote.read_only import RemoteReadOnlyStore

            return object.__new__(RemoteReadOnlyStore)
        return object.__new__(cls)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self._limits = settings.open_root(self.root, create=False)
        self._shards = shards.of(self.root)  # kept open as long as this is

    @property
    def limits(self) -> Settings:
        """The remembered limits, or those that `set_limit` has put in their place."""
        return self._limits

    def set_limit(
        self, limit_bytes: int | None = None, *, soft_limit_bytes: int | None = None, remember: bool = False
    ) -> None:
        """Answer as if these were the limits; None leaves one as it is, 0 or less means none.

        Raises:
            ValueError: a soft limit above the limit, or `remember`.
        """
        if remember:
            raise ValueError("a store that is only asked remembers nothing")
        self._limits = self._limits.changed(limit_bytes, soft_limit_bytes)

    @contextmanager
    def _viewed(self) -> Iterator[View]:
        yield self._view

    @cached_property
    def _view(self) -> View:
        ledger = Ledger(self.root)
        table, silences_s = looked_at(self.root, ledger, self._now_s())
        changes = ledger.changes
        view = View.of(table, changes, changes.active_runs(silences_s))
        # Contained in the table by now, and hundreds of thousands of objects where a build has just ended.
        for noted in (changes.entries, changes.used, changes.runs):
            noted.clear()
        return view

    def _now_s(self) -> float:
        # The file system's own clock is told by files that are made there.
        return time.time()
