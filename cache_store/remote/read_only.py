"""A store behind a URL that is only asked, for plans and before trainings: it puts nothing and leaves copies alone."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from cache_store.accounts import Changes
from cache_store.books import View
from cache_store.errors import CacheStoreError
from cache_store.read_only import ReadOnlyStore
from cache_store.remote import listing
from cache_store.remote.lookup import RemoteLookup
from cache_store.remote.tier import is_copy_of

if TYPE_CHECKING:
    from pyarrow import Table


class RemoteReadOnlyStore(RemoteLookup, ReadOnlyStore):
    """What `ReadOnlyStore(url)` returns. Listed once; single features are asked for themselves.

    What the copies' books tell of recipes is believed of copies of the versions that are listed.

    Raises:
        StoreFormatError: the URL's protocol is unknown or its package missing, or there is no such bucket.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._connect(root)

    @cached_property
    def _view(self) -> View:
        has_copy: list[bool] = []
        found = listing.table(
            self._objects(), None, on_page=lambda page: has_copy.extend(is_copy_of(self.root, info) for info in page)
        )
        return View(self._with_recipes(found, has_copy) if any(has_copy) else found, Changes(), set())

    def _with_recipes(self, found: Table, has_copy: list[bool]) -> Table:
        """The listing with the recipes of the features that have copies here."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            copies = ReadOnlyStore(self.root)._view.table
        except (CacheStoreError, OSError):
            # Copies that cannot be read cost requests, and nothing else.
            return found
        places = pc.index_in(found["name"], value_set=copies["name"].combine_chunks())
        told = pc.if_else(pa.array(has_copy), copies["fingerprint8"].take(places), pa.scalar(None, pa.string()))
        column = found.schema.get_field_index("fingerprint8")
        return found.set_column(column, found.schema.field(column), pc.coalesce(told, found["fingerprint8"]))
