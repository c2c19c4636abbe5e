"""A store behind a URL that is only asked, for plans and before trainings: it puts nothing and leaves copies alone."""

from __future__ import annotations

import os
from functools import cached_property

from cache_store.accounts import Changes
from cache_store.books import View
from cache_store.read_only import ReadOnlyStore
from cache_store.remote import listing
from cache_store.remote.lookup import RemoteLookup


class RemoteReadOnlyStore(RemoteLookup, ReadOnlyStore):
    """What `ReadOnlyStore(url)` returns. Listed once; single features are asked for themselves.

    Raises:
        StoreFormatError: the URL's protocol is unknown or its package missing, or there is no such bucket.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._connect(root)

    @cached_property
    def _view(self) -> View:
        return View(listing.table(self._objects(), None), Changes(), set())
