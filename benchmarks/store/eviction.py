"""Row `evict`: what the limit costs when every publish has to evict, beside the unlink itself."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.store.child import Finished, run_alone
from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped, settle_disk
from benchmarks.store.full_store import FAR_LIMIT_BYTES, filled
from benchmarks.store.keys import RECIPE, step_key
from benchmarks.store.report import Line, Row
from benchmarks.store.scale import Scale
from benchmarks.store.timing import median, seconds_of
from cache_store import FeatureStore, StepKey, naming

MOST_US = 5.0
_FEATURES = 1_000
_MEMORY = Path("/dev/shm")
_BYTES_OF_ENTRY = 8192  # one page of content and what the kernel keeps about the file


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row: judged in memory, because ext4 makes new files slowly for minutes after old ones were deleted.

    Everything happens in processes of their own, whose memory is a line too. The same on the disk is shown beside it.
    """
    with _folder_in_memory(scale) as memory:
        place = "in memory" if memory is not None else "on the disk, for want of room in memory"
        done = _run(memory or folder, scale, rounds=scale.eviction_rounds)
    on_disk = _run(folder, scale, rounds=1).found if memory is not None else done.found
    found = done.found
    evictions, puts = sum(found["evictions"]), scale.evictions * scale.eviction_rounds
    return [
        Row(
            "evict",
            f"publish at the limit with {scale.entries:,} entries",
            "µs",
            [
                Line("put below the limit, per put", median(found["free_us"])),
                Line("raw unlink of the least recently used files, per file", median(found["unlink_us"])),
                Line("put at the limit, per put", median(found["full_us"])),
                Line("bookkeeping, per eviction", bookkeeping_us(found), most_value=MOST_US),
                Line("longest single put at the limit", found["longest_us"]),
                Line("peak memory of the process, MB", done.peak_bytes / 1e6),
                Line("on the disk: put below the limit, per put", median(on_disk["free_us"])),
                Line("on the disk: raw unlink, per file", median(on_disk["unlink_us"])),
                Line("on the disk: put at the limit, per put", median(on_disk["full_us"])),
            ],
            [
                f"The first lines are {place}: {evictions:,} evictions in {puts:,} puts and {found['compactions']:,} "
                "compactions, without flush. Bookkeeping is (puts at the limit - as many puts below it - as many raw "
                "unlinks as there were evictions) / evictions, over all rounds; compactions are in it.",
                "On the disk a put at the limit also waits for ext4, which for some minutes passes over the inodes of "
                "deleted files one by one when it makes new ones, for whatever program.",
            ],
        )
    ]


def _run(folder: Path, scale: Scale, *, rounds: int) -> Finished:
    return run_alone(
        "evict",
        filled(folder, scale),
        entries=scale.entries,
        width=scale.entry_width,
        count=scale.evictions,
        rounds=rounds,
    )


@contextmanager
def _folder_in_memory(scale: Scale) -> Iterator[Path | None]:
    """A folder on a RAM file system with room for two stores' entries, removed afterwards; None where there is none."""
    needed_bytes = 2 * scale.entries * _BYTES_OF_ENTRY
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < needed_bytes:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=_MEMORY) as folder:
        yield Path(folder)


def bookkeeping_us(found: dict[str, Any]) -> float | None:
    """Microseconds per eviction beyond the put and the unlink; None where nothing was evicted.

    `found` is what `phases` returned. All rounds together, because evictions come in bursts.
    """
    evictions = sum(found["evictions"])
    if not evictions:
        return None
    puts = found["count"]
    extra_us = sum(puts * (full - free) for full, free in zip(found["full_us"], found["free_us"], strict=True))
    return float(extra_us / evictions - median(found["unlink_us"]))


def phases(root: Path, *, entries: int, width: int, count: int, rounds: int) -> dict[str, Any]:
    """Per round: `count` puts below the limit, as many raw unlinks of the oldest files, `count` puts at the limit.

    Returns microseconds per operation of each phase and round, the evictions of each round, the longest single put
    at the limit and the number of snapshots that were written during the last phases.
    """
    features = small_features(_FEATURES, width)
    oldest_first = deque(step_key(index) for index in range(entries))
    result: dict[str, Any] = {"count": count, "free_us": [], "unlink_us": [], "full_us": [], "evictions": []}
    longest_s, compactions = 0.0, 0
    with FeatureStore(root) as store, flushes_skipped():
        limit_bytes = store.stats().bytes
        for round_number in range(rounds):
            store.set_limit(FAR_LIMIT_BYTES)
            keys = [step_key(round_number * count + i, episodes="free") for i in range(count)]
            result["free_us"].append(sum(_put_all(store, keys, features)) / count * 1e6)
            oldest_first.extend(keys)
            result["unlink_us"].append(_unlink_oldest(store, oldest_first, count) / count * 1e6)
            store.close()  # gives back the room that was granted under the far limit
            before = store.stats().evictions  # also tells the books what was just unlinked
            store.set_limit(limit_bytes)
            keys = [step_key(round_number * count + i, episodes="full") for i in range(count)]
            watch = _SnapshotWatch(root)
            puts_s = _put_all(store, keys, features, watch)
            result["full_us"].append(sum(puts_s) / count * 1e6)
            oldest_first.extend(keys)
            result["evictions"].append(store.stats().evictions - before)
            longest_s, compactions = max(longest_s, *puts_s), compactions + watch.changes
    return {**result, "longest_us": longest_s * 1e6, "compactions": compactions}


class _SnapshotWatch:
    """Counts how often the store's snapshot was replaced, as often as it is asked to look."""

    def __init__(self, root: Path) -> None:
        self._path = root / naming.SNAPSHOT
        self._last = self._identity()
        self.changes = 0

    def look(self) -> None:
        seen = self._identity()
        self.changes += seen != self._last
        self._last = seen

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def _put_all(
    store: FeatureStore, keys: Iterable[StepKey], features: Any, watch: _SnapshotWatch | None = None
) -> list[float]:
    """Seconds of each put."""
    settle_disk()
    taken_s: list[float] = []

    def put_all() -> None:
        for i, key in enumerate(keys):
            start_s = time.perf_counter()
            store.put(key, features[i % _FEATURES], recipe=RECIPE)
            taken_s.append(time.perf_counter() - start_s)
            if watch is not None and i % 500 == 499:
                watch.look()

    seconds_of(put_all)
    return taken_s


def _unlink_oldest(store: FeatureStore, oldest_first: deque[StepKey], count: int) -> float:
    """Seconds that unlinking the `count` oldest files that are left takes by itself."""
    settle_disk()
    paths: list[Path] = []
    while len(paths) < count and oldest_first:
        path = store.path_of(oldest_first.popleft())
        if path.exists():
            paths.append(path)

    def unlink_all() -> None:
        for path in paths:
            os.unlink(path)

    return seconds_of(unlink_all)
