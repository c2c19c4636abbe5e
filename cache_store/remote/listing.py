"""All features of a remote root as one table, from a listing page by page, which also shows what copies are old."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_store import naming
from cache_store.errors import StoreReadError, StoreWriteError
from cache_store.remote.objects import ObjectInfo, Objects
from cache_store.remote.tier import Tier
from cache_store.scan import STRAY_AFTER_S

if TYPE_CHECKING:
    from pyarrow import Table

logger = logging.getLogger("cache_store")


def table(
    objects: Objects, tier: Tier | None, *, on_page: Callable[[list[ObjectInfo]], object] = lambda page: None
) -> Table:
    """All features as the service lists them, in the columns of `entry_table`; `on_page` is given their objects.

    It knows no uses, and no recipes but those that a folder's name tells. Old copies leave the tier that is given, and
    what writers left on the way to a name goes a day later.

    Memory: a page of objects beside 100 bytes for each feature.

    Raises:
        StoreReadError: the service refused or could not be reached.
    """
    import pyarrow as pa

    from cache_store import entry_table

    parts = [entry_table.SCHEMA.empty_table()]
    leavings = Leavings()
    for page in features(objects, leavings):
        if tier is not None:
            tier.compare(page)
        on_page(page)
        written = [info.written_us for info in page]
        names = [info.name for info in page]
        recipes = [name.partition("/")[0].partition("@")[2] if "@" in name else "" for name in names]
        columns = [names, [info.bytes for info in page], written, written, recipes, [""] * len(page)]
        parts.append(pa.table(columns, schema=entry_table.SCHEMA))
    found = pa.concat_tables(parts).combine_chunks()
    if tier is not None:
        tier.forget_all_but(found)
        leavings.sweep(objects)
    return found


@dataclass
class Leavings:
    """Objects under temporary names, where a put takes two steps. A writer that was killed has left some of them."""

    found: list[ObjectInfo] = field(default_factory=list)
    newest_us: int = 0  # when any object was written last

    def note(self, page: list[ObjectInfo]) -> None:
        """See what is on a page of a listing."""
        self.found += [info for info in page if info.name.rpartition("/")[2].startswith(naming.TEMP_PREFIX)]
        self.newest_us = max([self.newest_us, *(info.written_us for info in page)])

    def sweep(self, objects: Objects) -> None:
        """Delete those that are a day older than what was written last: by one clock, that of the service."""
        for info in self.found:
            if 0 < info.written_us < self.newest_us - STRAY_AFTER_S * 1e6:
                with suppress(StoreReadError, StoreWriteError):  # next time, then
                    objects.delete(info.name)


def features(objects: Objects, leavings: Leavings) -> Iterator[list[ObjectInfo]]:
    """The objects that are features, page by page."""
    has_shards = False
    for page in objects.pages():
        leavings.note(page)
        if not has_shards and any(naming.is_shard(info.name) for info in page):
            has_shards = True
            logger.warning(
                "%s holds shards, which are not read there; `vlm-cache migrate` copies what is packed one by one",
                objects.url,
            )
        yield [info for info in page if naming.is_feature(info.name)]
