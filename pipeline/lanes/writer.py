"""Publishes finished features: many small ones with one flush to the disk, a large one alone."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cache_store import CacheStoreError, EntryExists, FeatureKey, FeatureStore, StepKey
from pipeline.encode_unit import EncodedUnit, put_item
from pipeline.failures import ErrorClass, UnitFailure, failure_of
from pipeline.unit_done import UnitDone, published
from pipeline.work_plan import BuildTask

WRITERS = 2  # while one waits for the disk the other one computes checksums
MOST_UNITS = 64  # of one flush
MOST_BYTES = 16 * 2**20
LINGER_S = 0.004  # how long a flush may wait for more, while more is on its way


logger = logging.getLogger("pipeline.lanes")


@dataclass(eq=False)
class Publishing:
    """A unit on its way to the disk."""

    encoded: EncodedUnit
    since: float = field(default_factory=time.perf_counter)  # seconds on the performance counter
    outcome: Future[UnitDone | UnitFailure] = field(default_factory=Future)


class Writer:
    """Threads that gather finished units and publish them. A unit is done when its feature has its final name.

    Steps have one name whatever their recipe. Unless `replaces`, one that another build has published meanwhile stays:
    of this recipe it is the unit's feature, of another the unit fails.
    """

    def __init__(self, task: BuildTask, store: FeatureStore, *, limit_s: float, replaces: bool = False) -> None:
        self._task, self._store, self._limit_s, self._replaces = task, store, limit_s, replaces
        self._queue: deque[Publishing] = deque()
        self._queued_bytes = 0
        self._coming = 0  # units in the process that are not in the queue yet
        self._changed = threading.Condition()
        self._gathering = threading.Lock()
        for number in range(WRITERS):
            threading.Thread(target=self._work, name=f"writer {number}", daemon=True).start()

    def expect(self, units: int = 1) -> None:
        """Note that units are on their way: a flush may wait a moment for them."""
        with self._changed:
            self._coming += units

    def expect_no_more(self, units: int = 1) -> None:
        """Take an `expect` back: its units have failed on their way."""
        with self._changed:
            self._coming -= units
            self._changed.notify()

    def publish(self, encoded: EncodedUnit) -> Publishing:
        """Begin to publish one expected unit, together with others that are ready; `result` waits for the end."""
        waiting = Publishing(encoded)
        with self._changed:
            self._coming -= 1
            self._queue.append(waiting)
            self._queued_bytes += encoded.nbytes
            # One thread gathers. It is woken where it can act, because each waking costs more than a small feature.
            if len(self._queue) == 1 or self._is_worth_a_flush():
                self._changed.notify()
        return waiting

    def result(self, waiting: Publishing) -> UnitDone | UnitFailure:
        """Wait until a unit is published, or has failed.

        A full store and a failing or hanging disk come back as failures that stop the build.
        """
        encoded = waiting.encoded
        try:
            return waiting.outcome.result(timeout=self._limit_s)
        except FutureTimeout:
            pass
        reason = f"not on the disk after {self._limit_s:g} s"
        return UnitFailure(encoded.unit.name, "write", reason, ErrorClass.HANG, stops_build=True, spoils_process=True)

    def _work(self) -> None:
        while True:
            with self._gathering:
                group = self._next_group()
            for waiting, outcome in zip(group, self._published(group), strict=True):
                waiting.outcome.set_result(outcome)

    def _next_group(self) -> list[Publishing]:
        """Wait for units worth a flush, or for a moment after the first one came; take what is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            self._changed.wait_for(self._is_worth_a_flush, timeout=LINGER_S)
            group: list[Publishing] = []
            size = 0
            while self._queue and len(group) < MOST_UNITS:
                size += self._queue[0].encoded.nbytes
                if group and size > MOST_BYTES:
                    break
                group.append(self._queue.popleft())
                self._queued_bytes -= group[-1].encoded.nbytes
            return group

    def _is_worth_a_flush(self) -> bool:
        return self._coming <= 0 or len(self._queue) >= MOST_UNITS or self._queued_bytes >= MOST_BYTES

    def _published(self, group: list[Publishing]) -> list[UnitDone | UnitFailure]:
        made: Sequence[Path] = ()
        if len(group) > 1:
            try:
                items = [put_item(waiting.encoded, self._task) for waiting in group]
                paths = self._store.put_many(items, create_only=self._leaves(items[0].key))
                return [self._done(waiting, path) for waiting, path in zip(group, paths, strict=True)]
            except Exception as exc:  # noqa: BLE001 - which of them is to blame shows when each is put alone
                logger.info("a group of %d features is put one by one: %s", len(group), exc)
                made = exc.published if isinstance(exc, CacheStoreError) else ()
        return [self._put(waiting, made) for waiting in group]

    def _put(self, waiting: Publishing, made: Sequence[Path]) -> UnitDone | UnitFailure:
        """Publish one unit, unless its feature is among those `made` of its group."""
        name = waiting.encoded.unit.name
        try:
            key, value, recipe, provenance = put_item(waiting.encoded, self._task)
            if made and (path := self._store.path_of(key, recipe=recipe)) in made:
                return self._done(waiting, path)
            how: dict[str, Any] = {"recipe": recipe, "provenance": provenance}
            try:
                return self._done(waiting, self._store.put(key, value, **how, create_only=self._leaves(key)))
            except EntryExists:
                there = published(waiting.encoded.unit, self._task, self._store)
                if there is not None:
                    return replace(there, encode_s=waiting.encoded.encode_s)
            mismatch = self._store.mismatch_of(key, recipe=recipe or {})
            if mismatch is not None:
                reason = f"another build has published it meanwhile: {mismatch}; pass --overwrite, or another --store"
                return UnitFailure(name, "write", reason, ErrorClass.EXCEPTION)
            return self._done(waiting, self._store.put(key, value, **how))  # what is there is damaged, or gone again
        except Exception as exc:  # noqa: BLE001 - the unit is named in the report
            return failure_of(exc, key=name, stage="write")

    def _leaves(self, key: FeatureKey) -> bool:
        """Whether what is there under the key by now is to stay. Videos of other recipes have other names."""
        return isinstance(key, StepKey) and not self._replaces

    def _done(self, waiting: Publishing, path: Path) -> UnitDone:
        encoded = waiting.encoded
        write_s = time.perf_counter() - waiting.since
        return UnitDone(encoded.unit.name, self._store.bytes_at(path), encoded.encode_s, write_s, encoded.split_into)
