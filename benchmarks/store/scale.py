"""How much each row measures: the full sizes of the targets, or small ones that only show that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts, shapes and rounds of a run."""

    small_features: int = 20_000
    small_width: int = 3072  # of a `[1, 1, width]` float16 feature
    slow_reads: int = 2_000  # per round, of readers that take some hundred microseconds for one
    read_rounds: int = 7
    large_shape: tuple[int, int, int] = (128, 576, 1024)  # float16: 144 MiB
    large_rounds: int = 9
    frames: int = 8
    frame_reads: int = 20  # per round, of readers that read only the frames
    publishes: int = 1_000  # per round
    flushed_publishes: int = 200  # per round, of writers that flush each file
    publish_rounds: int = 7
    entries: int = 1_000_000
    entry_width: int = 64  # of the entries that only have to be many
    rescans: int = 2  # saves of the old scripts per round in the full folder: seconds each
    evictions_in_memory: int = 150_000  # several passes of the evictor
    evictions: int = 20_000  # on the disk
    listing_rounds: int = 3


QUICK = Scale(
    small_features=200,
    slow_reads=20,
    read_rounds=2,
    large_shape=(16, 24, 64),
    large_rounds=2,
    frames=4,
    frame_reads=2,
    publishes=20,
    flushed_publishes=5,
    publish_rounds=2,
    entries=400,
    rescans=1,
    evictions_in_memory=60,
    evictions=60,
    listing_rounds=1,
)
