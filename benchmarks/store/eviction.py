"""Row `evict`: what the limit costs when every publish has to evict, beside the unlink itself."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.store.child import Finished, run_alone
from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped, settle_disk
from benchmarks.store.full_store import FAR_LIMIT_BYTES, filled
from benchmarks.store.keys import RECIPE, step_key
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Line, Row
from benchmarks.store.scale import Scale
from cache_store import FeatureStore
from cache_store.snapshot import newest

MOST_US = 5.0
_FEATURES = 1_000
_MEMORY = Path("/dev/shm")
_FILE_BYTES = 2048  # about what an entry of this width takes with its record
_BYTES_IN_MEMORY = 6144  # one page of content and what the kernel keeps about the file


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row: judged in memory, because ext4 makes new files slowly for minutes after old ones were deleted.

    Everything happens in processes of their own, whose memory is a line too. The same on the disk is shown beside it.
    """
    with _folder_in_memory(scale) as memory:
        place = "in memory" if memory is not None else "on the disk, for want of room in memory"
        puts = scale.evictions_in_memory if memory is not None else scale.evictions
        done = _run(memory or folder, scale, puts)
    found = done.found
    on_disk = _run(folder, scale, scale.evictions).found if memory is not None else found
    return [
        Row(
            "evict",
            f"publish at the limit with {scale.entries:,} entries",
            "µs",
            [
                Line("put below the limit, per put", mean_us(found["free_s"], puts)),
                Line("put at the limit, per put", mean_us(found["full_s"], puts)),
                Line("raw unlink, per file", mean_us(found["unlink_s"], puts)),
                Line("bookkeeping, per eviction", bookkeeping_us(found), most_value=MOST_US),
                Line("longest single put at the limit", found["longest_s"] * 1e6),
                Line("peak memory of the process, MB", done.peak_bytes / 1e6),
                Line("on the disk: put below the limit, per put", mean_us(on_disk["free_s"], scale.evictions)),
                Line("on the disk: put at the limit, per put", mean_us(on_disk["full_s"], scale.evictions)),
                Line("on the disk: raw unlink, per file", mean_us(on_disk["unlink_s"], scale.evictions)),
            ],
            [
                f"The first lines are {place}: {found['evictions']:,} evictions in {puts:,} puts and "
                f"{found['compactions']:,} compactions, without flush. A put below the limit, a put at the limit and a "
                "raw unlink take turns, one by one. Bookkeeping is (puts at the limit - as many puts below it) / "
                "evictions - raw unlink; compactions are in it.",
                "On the disk a put at the limit also waits for ext4, which for some minutes passes over the inodes of "
                "deleted files one by one when it makes new ones, for whatever program.",
            ],
        )
    ]


def _run(folder: Path, scale: Scale, puts: int) -> Finished:
    return run_alone("evict", filled(folder, scale), width=scale.entry_width, puts=puts)


@contextmanager
def _folder_in_memory(scale: Scale) -> Iterator[Path | None]:
    """A folder on a RAM file system with room for all entries, removed afterwards; None where there is none."""
    needed_bytes = (scale.entries + 2 * scale.evictions_in_memory) * _BYTES_IN_MEMORY
    if not _MEMORY.is_dir() or min(shutil.disk_usage(_MEMORY).free, _available_bytes()) < 1.5 * needed_bytes:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=_MEMORY) as folder:
        yield Path(folder)


def _available_bytes() -> int:
    """Memory that the kernel could hand out without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def mean_us(total_s: float, count: int) -> float:
    return total_s / count * 1e6


def bookkeeping_us(found: dict[str, Any]) -> float | None:
    """Microseconds per eviction beyond the put and the unlink; None where nothing was evicted.

    `found` is what `publish_at_the_limit` returned. Sums, not medians, because evictions come in bursts.
    """
    if not found["evictions"]:
        return None
    extra_s = found["full_s"] - found["free_s"]
    return float(mean_us(extra_s, found["evictions"]) - mean_us(found["unlink_s"], found["puts"]))


def publish_at_the_limit(root: Path, *, width: int, puts: int) -> dict[str, Any]:
    """Publish to the full store at `root`, which is set to its present size as its limit.

    Beside each put goes one to a new store below its limit, and the unlink of one raw file. Garbage collection stays
    on, because the memory of the process is measured too. Returns the seconds of all together by kind, the longest
    single put at the limit, the number of evictions, and the number of snapshots that were written meanwhile.
    """
    features = small_features(_FEATURES, width)
    unlinked = RawFiles(root.parent / "unlinked", features[0])
    for index in range(puts):
        unlinked.write(index, bytes(_FILE_BYTES))
    free_s = full_s = unlink_s = longest_s = 0.0
    now_s = time.perf_counter
    with (
        FeatureStore(root) as full,
        FeatureStore(root.parent / "free", limit_bytes=FAR_LIMIT_BYTES) as free,
        flushes_skipped(),
    ):
        before = full.stats()
        full.set_limit(before.bytes)
        watch = _SnapshotWatch(root)
        settle_disk()
        for index in range(puts):
            key, feature = step_key(index, episodes="new"), features[index % _FEATURES]
            start_s = now_s()
            free.put(key, feature, recipe=RECIPE)
            free_done_s = now_s()
            full.put(key, feature, recipe=RECIPE)
            full_done_s = now_s()
            unlinked.unlink(index)
            unlink_s += now_s() - full_done_s
            free_s += free_done_s - start_s
            full_s += full_done_s - free_done_s
            longest_s = max(longest_s, full_done_s - free_done_s)
            if index % 500 == 499:
                watch.look()
        evictions = full.stats().evictions - before.evictions
    return {
        "puts": puts,
        "free_s": free_s,
        "full_s": full_s,
        "unlink_s": unlink_s,
        "longest_s": longest_s,
        "evictions": evictions,
        "compactions": watch.changes,
    }


class _SnapshotWatch:
    """Counts how often the store's snapshot was replaced, as often as it is asked to look."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last = newest(root)
        self.changes = 0

    def look(self) -> None:
        seen = newest(self._root)
        self.changes += seen != self._last
        self._last = seen
