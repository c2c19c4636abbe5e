"""Rows `packed-get` and `packed-batch`: random reads of packed features, one by one and many into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.packed.formats import FORMATS, LanceTable, WebDatasetStream
from benchmarks.packed.scale import Scale
from benchmarks.store.features import bytes_of, shuffled, small_features
from benchmarks.store.keys import step_key
from benchmarks.store.peers import Peer, WebDatasetShards, filled_peer
from benchmarks.store.raw_files import PackedFile, RawFiles
from benchmarks.store.report import Line, Row, lines_of, not_measured
from benchmarks.store.small_reads import (
    BASE,
    MOST_RATIO,
    PACKED,
    STORE,
    Fill,
    batches,
    check_equal,
    filled_store,
    one_batch,
    reads,
)
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureStore

_STREAMED = 8  # shards


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Both rows, from one run."""
    features, order = small_features(scale.features, scale.width), shuffled(scale.features)
    with ExitStack() as cleanup:
        packed = PackedFile(folder / "packed.raw", features)
        cleanup.callback(packed.close)
        single, batched = _stores(folder, features, order, scale, cleanup)
        single.insert(0, reads(BASE, packed.read, order, features))
        absent: tuple[list[Line], list[Line]] = ([], [])
        for kind in FORMATS:
            if not kind.is_installed():
                for unmeasured in absent:
                    unmeasured.append(not_measured(kind.name, "not installed"))
                continue
            peer = filled_peer(kind, folder, features, parts=_STREAMED if kind is WebDatasetShards else 1)
            cleanup.callback(peer.close)
            if isinstance(peer, WebDatasetShards):
                absent[0].append(not_measured(kind.name, "no random access"))
                batched.append(_stream(folder / kind.module, features))
                continue
            single.append(reads(kind.name, peer.read, order[: scale.slow_reads], features))
            batched.append(_peer_batches(peer, order, features, scale))
        times_s = interleaved_s([*single, *batched], rounds=scale.rounds)
    lines = {line.name: line for line in lines_of([*single, *batched], times_s, base=BASE, unit_s=1e-6)}
    return [
        _row("packed-get", "one by one", single, lines, absent[0], scale),
        _row("packed-batch", f"{scale.batch} at a time", [single[0], *batched], lines, absent[1], scale),
    ]


def _stores(
    folder: Path, features: torch.Tensor, order: list[int], scale: Scale, cleanup: ExitStack
) -> tuple[list[Contestant], list[Contestant]]:
    """What reads one by one, and what reads batches, of raw files, a loose store and a packed one."""
    raw = RawFiles(folder / "raw", features[0])
    for index, feature in enumerate(features):
        raw.write(index, bytes_of(feature))
    loose = cleanup.enter_context(filled_store(folder / "store", features))
    packed = cleanup.enter_context(filled_store(folder / "packed", features))
    packed.pack()
    keys = [step_key(index) for index in range(len(features))]

    def into(store: FeatureStore) -> Fill:
        return lambda indices, out: store.get_batch([keys[index] for index in indices], out=out)

    def new(indices: Sequence[int], _: torch.Tensor) -> torch.Tensor:
        return packed.get_batch([keys[index] for index in indices]).features

    size = scale.batch
    ready = batches(f"packed, get_batch of {size} into a ready batch", into(packed), order, features, size)
    return [
        reads("raw open, read, close of one file each", raw.read, order, features),
        reads(STORE, lambda index: loose.get(keys[index]), order, features),
        reads(PACKED, lambda index: packed.get(keys[index]), order, features),
    ], [
        one_batch(packed, [keys[index] for index in order], features[order]),
        replace(ready, most_ratio=MOST_RATIO),
        batches(f"packed, get_batch of {size}, new memory", new, order, features, size),
        batches(f"one .pt each, get_batch of {size} into a ready batch", into(loose), order, features, size),
    ]


def _peer_batches(peer: Peer, order: list[int], features: torch.Tensor, scale: Scale) -> Contestant:
    name, few = f"{peer.name}, {scale.batch} into a ready batch", order[: max(scale.slow_reads, scale.batch)]
    if isinstance(peer, LanceTable):
        take = peer.read_many
        return batches(name, lambda indices, out: out.copy_(take(indices)), few, features, scale.batch)

    def one_by_one(indices: Sequence[int], out: torch.Tensor) -> None:
        for row, index in enumerate(indices):
            out[row] = peer.read(index)

    return batches(name, one_by_one, few, features, scale.batch)


def _stream(folder: Path, features: torch.Tensor) -> Contestant:
    name, stream = f"{WebDatasetShards.name}, one pass into a ready batch", WebDatasetStream(folder, shuffle=False)
    ready = torch.empty_like(features)

    def run(_: int) -> None:
        for row, feature in enumerate(stream):
            ready[row] = feature

    run(0)
    check_equal(name, ready, features)
    return Contestant(name, len(features), run, note="in the order of writing: it only streams")


def _row(id: str, how: str, of: list[Contestant], lines: dict[str, Line], absent: list[Line], scale: Scale) -> Row:
    what = f"random read of {scale.features:,} packed features [1, 1, {scale.width}] float16, {how}"
    remark = f"Warm page cache, one thread, one fixed shuffled order, {scale.rounds} rounds in turns."
    few = f"MosaicML and Lance read the first {scale.slow_reads:,} of the order in each round."
    verified = "get_batch verifies each checksum the first time that a process reads it, here before the rounds."
    remarks = [remark, few, *([verified] if id == "packed-batch" else [])]
    return Row(id, what, "µs per feature", [*(lines[one.name] for one in of), *absent], remarks)
