"""Row `publish`: what it costs to publish a small feature, with and without limit, journal and flush to disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped, settle_disk
from benchmarks.store.keys import RECIPE, step_key
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.peers import PEERS, Peer
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Line, Row, lines_of, not_measured
from benchmarks.store.scale import Scale
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureStore, PutItem, StepKey

BASE = "raw file write: open, write, close"
LIMITED = "put, limit and journal, without flush"
FLUSHED = "put, limit and journal, each file flushed"
FLUSHED_TOGETHER = "put_many, limit and journal, one flush"
BATCH = "put_batch into shards, limit and journal, without flush"
FLUSHED_BATCH = "put_batch into shards, limit and journal, flushed"
_FAR_LIMIT_BYTES = 2**50
_MOST_UNFLUSHED = 1.3
_MOST_FLUSHED = 6.0


class _Work:
    """Features to publish: every round takes new ones, so that nothing is ever replaced."""

    def __init__(self, scale: Scale) -> None:
        self.features = small_features(scale.publishes, scale.small_width)
        self.per_round = scale.publishes

    def items(self, round_number: int, count: int) -> list[tuple[int, torch.Tensor]]:
        start = round_number * self.per_round
        return [(start + i, self.features[i]) for i in range(count)]


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row."""
    work = _Work(scale)
    absent: list[Line] = []
    with ExitStack() as cleanup:
        plain = cleanup.enter_context(FeatureStore(folder / "plain"))
        limited = cleanup.enter_context(FeatureStore(folder / "limited", limit_bytes=_FAR_LIMIT_BYTES))
        flushed = cleanup.enter_context(FeatureStore(folder / "flushed", limit_bytes=_FAR_LIMIT_BYTES))
        together = cleanup.enter_context(FeatureStore(folder / "together", limit_bytes=_FAR_LIMIT_BYTES))
        packed = cleanup.enter_context(FeatureStore(folder / "packed", limit_bytes=_FAR_LIMIT_BYTES))
        content = _file_of(plain, work.features[0])
        raw = RawFiles(folder / "raw", work.features[0])
        many, few = scale.publishes, scale.flushed_publishes
        contestants = [
            _writes(BASE, work, many, lambda index, _: raw.write(index, content)),
            _writes("raw write to another name, rename", work, many, lambda i, _: raw.write_renamed(i, content)),
            _writes("put, without flush", work, many, _put(plain), flushes=False),
            _writes(LIMITED, work, many, _put(limited), flushes=False, most_ratio=_MOST_UNFLUSHED),
            _batch("put_many, limit and journal, without flush", work, many, _put_many(limited), flushes=False),
            _batch(BATCH, work, many, _put_batch(packed), flushes=False, most_ratio=_MOST_UNFLUSHED),
            _writes("raw file write, each file flushed", work, few, lambda index, _: raw.write_flushed(index, content)),
            _writes(FLUSHED, work, few, _put(flushed), most_ratio=_MOST_FLUSHED),
            _batch(FLUSHED_TOGETHER, work, many, _put_many(together), most_ratio=_MOST_FLUSHED),
            _batch(FLUSHED_BATCH, work, many, _put_batch(packed), most_ratio=_MOST_FLUSHED),
        ]
        for kind in PEERS:
            if not kind.is_installed():
                absent.append(not_measured(kind.name, "not installed"))
                continue
            peer = kind(folder / kind.module, work.features[0])
            cleanup.callback(peer.close)
            contestants.append(_peer(peer, work, many))
        old = OldScripts(folder / "old")
        contestants.append(_writes(old.name, work, few, old.write, note="rescans the files that it wrote here"))
        times_s = interleaved_s(contestants, rounds=scale.publish_rounds)
    return [
        Row(
            "publish",
            f"publish a small feature [1, 1, {scale.small_width}] float16",
            "µs per publish",
            [*lines_of(contestants, times_s, base=BASE, unit_s=1e-6), *absent],
            [
                f"{many:,} new features per round ({few:,} where each file is flushed, and by the old scripts), "
                f"{scale.publish_rounds} rounds in turns; the disk is settled before each turn.",
                "Without flush: os.fsync replaced by nothing in this process; the store always flushes. The raw write "
                f"is of the store's own {len(content):,} bytes; none of the peers flushes.",
            ],
        )
    ]


def _file_of(store: FeatureStore, feature: torch.Tensor) -> bytes:
    """The bytes of a stored feature's file, so that the raw write moves as many."""
    key = step_key(0, episodes="sample")
    content = store.put(key, feature, recipe=RECIPE).read_bytes()
    store.delete(key)
    return content


def _put(store: FeatureStore) -> Callable[[int, torch.Tensor], object]:
    return lambda index, feature: store.put(step_key(index), feature, recipe=RECIPE)


def _writes(
    name: str,
    work: _Work,
    count: int,
    write: Callable[[int, torch.Tensor], object],
    *,
    flushes: bool = True,
    most_ratio: float | None = None,
    note: str = "",
) -> Contestant:
    def run(round_number: int) -> None:
        for index, feature in work.items(round_number, count):
            write(index, feature)

    return Contestant(name, count, run if flushes else _without_flush(run), settle_disk, most_ratio, note)


def _batch(
    name: str,
    work: _Work,
    count: int,
    put: Callable[[list[StepKey], torch.Tensor], object],
    *,
    flushes: bool = True,
    most_ratio: float | None = None,
) -> Contestant:
    def run(round_number: int) -> None:
        start = round_number * count
        put([step_key(start + i, episodes=f"batch{flushes}") for i in range(count)], work.features[:count])

    return Contestant(name, count, run if flushes else _without_flush(run), settle_disk, most_ratio)


def _put_many(store: FeatureStore) -> Callable[[list[StepKey], torch.Tensor], object]:
    return lambda keys, features: store.put_many(
        [PutItem(key, feature, RECIPE) for key, feature in zip(keys, features, strict=True)]
    )


def _put_batch(store: FeatureStore) -> Callable[[list[StepKey], torch.Tensor], object]:
    return lambda keys, features: store.put_batch(keys, features, recipe=RECIPE)


def _peer(peer: Peer, work: _Work, count: int) -> Contestant:
    def run(round_number: int) -> None:
        for index, feature in work.items(round_number, count):
            peer.write(index, feature)
        peer.finish()

    return Contestant(peer.name, count, run, settle_disk)


def _without_flush(run: Callable[[int], None]) -> Callable[[int], None]:
    def run_without(round_number: int) -> None:
        with flushes_skipped():
            run(round_number)

    return run_without
