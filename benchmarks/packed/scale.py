"""How much each row about packed features does: enough to measure, or to show that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts and sizes of a run."""

    rounds: int = 7
    features: int = 20_000  # `[1, 1, width]` float16, read one by one and in batches
    width: int = 3072
    slow_reads: int = 2_000  # per round, of readers that take some hundred microseconds for one
    batch: int = 256  # read at once
    loaded: int = 8_000  # features of an epoch
    load_rounds: int = 5
    load_batch: int = 64
    workers: tuple[int, ...] = (0, 1, 2, 4)
    packed: int = 8_000  # features packed and unpacked in a round
    pack_rounds: int = 5
    remote: int = 400  # objects fetched in a round
    remote_rounds: int = 5
    entries: int = 1_000_000
    entry_width: int = 64  # of the entries that only have to be many
    sampled: int = 10_000  # of the entries: verified, and read one by one
    batches: int = 400  # of `batch` entries


QUICK = Scale(
    rounds=1,
    features=200,
    width=32,
    slow_reads=20,
    batch=32,
    loaded=120,
    load_rounds=1,
    load_batch=20,
    workers=(0, 1),
    packed=60,
    pack_rounds=1,
    remote=20,
    remote_rounds=1,
    entries=400,
    sampled=40,
    batches=2,
)
