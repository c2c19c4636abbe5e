"""Row `read-small`: random reads of many small features, one file each, everything in the page cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.store.features import bytes_of, shuffled, small_features
from benchmarks.store.flushing import flushes_skipped
from benchmarks.store.keys import step_key
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.peers import PEERS, TorchFiles, filled_peer
from benchmarks.store.raw_files import PackedFile, RawFiles
from benchmarks.store.report import Line, Row, lines_of, not_measured
from benchmarks.store.scale import Scale
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureKey, FeatureStore, PutItem

BASE = "raw preadv from one packed file, reused buffer"
STORE = "FeatureStore.get, CRC checked"
PACKED_BATCH = "packed, FeatureStore.get_batch of all into a ready batch"
PACKED = "packed, FeatureStore.get, CRC checked"
MOST_RATIO = 1.5  # of a batch
Fill = Callable[[Sequence[int], torch.Tensor], object]
_READ_AT_ONCE = 256  # as a loader does
_PUT_AT_ONCE = 1_000


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row."""
    features = small_features(scale.small_features, scale.small_width)
    order = shuffled(scale.small_features)
    few = order[: scale.slow_reads]
    absent: list[Line] = []
    with ExitStack() as cleanup:
        packed = PackedFile(folder / "packed.raw", features)
        cleanup.callback(packed.close)
        raw = RawFiles(folder / "raw", features[0])
        for index, feature in enumerate(features):
            raw.write(index, bytes_of(feature))
        store = filled_store(folder / "store", features)
        cleanup.callback(store.close)
        packed_store = filled_store(folder / "packed", features)
        cleanup.callback(packed_store.close)
        packed_store.pack()
        keys = [step_key(index) for index in range(scale.small_features)]
        contestants = [
            reads(BASE, packed.read, order, features),
            reads("raw open, read, close of one file each", raw.read, order, features),
            reads(STORE, lambda index: store.get(keys[index]), order, features, most_ratio=7.0),
            reads(PACKED, lambda index: packed_store.get(keys[index]), order, features),
            batches(
                f"packed, FeatureStore.get_batch of {_READ_AT_ONCE} into a ready batch",
                lambda indices, out: packed_store.get_batch([keys[index] for index in indices], out=out),
                order,
                features,
                _READ_AT_ONCE,
                most_ratio=MOST_RATIO,
            ),
            one_batch(packed_store, [keys[index] for index in order], features[order]),
        ]
        for kind in PEERS:
            if not kind.is_installed():
                absent.append(not_measured(kind.name, "not installed"))
                continue
            if not kind.can_read:
                absent.append(not_measured(kind.name, "no random access"))
                continue
            peer = filled_peer(kind, folder, features)
            cleanup.callback(peer.close)
            contestants.append(reads(kind.name, peer.read, few, features))
        old = OldScripts(folder / TorchFiles.module)  # their files are torch.save's
        contestants.append(reads(f"{old.name} (exists, torch.load)", old.read, few, features))
        times_s = interleaved_s(contestants, rounds=scale.read_rounds)
    lines = lines_of(contestants, times_s, base=BASE, unit_s=1e-6)
    width = scale.small_width
    return [
        Row(
            "read-small",
            f"random read of {scale.small_features:,} features [1, 1, {width}] float16, one .pt each",
            "µs per read",
            [*lines, *absent],
            [
                f"Warm page cache, one thread, one fixed shuffled order, {scale.read_rounds} rounds in turns. Readers "
                f"from {TorchFiles.name} on read the first {len(few):,} of the order in each round. The batch verifies "
                "each checksum the first time that a process reads it, here in the round that is not counted."
            ],
        )
    ]


def reads(
    name: str,
    read: Callable[[int], object],
    order: list[int],
    features: torch.Tensor,
    *,
    most_ratio: float | None = None,
    note: str = "",
) -> Contestant:
    """Features read one by one, in this order.

    Raises:
        RuntimeError: not what was written.
    """
    for index in order[:50]:
        check_equal(name, read(index), features[index])

    def run(_: int) -> None:
        for index in order:
            read(index)

    return Contestant(name, len(order), run, most_ratio=most_ratio, note=note)


def batches(
    name: str,
    fill: Fill,
    order: list[int],
    features: torch.Tensor,
    size: int,
    *,
    most_ratio: float | None = None,
) -> Contestant:
    """Features read `size` at a time: `fill` fills the tensor that it is given, or returns another one.

    Raises:
        RuntimeError: not what was written.
    """
    ready = torch.empty((size, *features.shape[1:]), dtype=features.dtype)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    for part in parts:
        filled = fill(part, ready[: len(part)])
        check_equal(name, filled if isinstance(filled, torch.Tensor) else ready[: len(part)], features[part])

    def run(_: int) -> None:
        for part in parts:
            fill(part, ready[: len(part)])

    return Contestant(name, len(order), run, most_ratio=most_ratio)


def one_batch(store: FeatureStore, keys: list[FeatureKey], wanted: torch.Tensor) -> Contestant:
    """All features of a packed store read into one ready tensor: the row of the targets."""
    out = torch.empty_like(wanted)

    def run(_: int) -> None:
        store.get_batch(keys, out=out)

    run(0)
    check_equal(PACKED_BATCH, out, wanted)
    return Contestant(PACKED_BATCH, len(keys), run, most_ratio=MOST_RATIO)


def check_equal(name: str, found: object, wanted: torch.Tensor) -> None:
    """Refuse to time a reader that returns other bits.

    Raises:
        RuntimeError: what was read is not bitwise the feature that was written.
    """
    if (
        not isinstance(found, torch.Tensor)
        or (found.dtype, found.shape) != (wanted.dtype, wanted.shape)
        or bytes_of(found.contiguous()) != bytes_of(wanted.contiguous())
    ):
        raise RuntimeError(f"{name} does not return what was written")


def filled_store(root: Path, features: torch.Tensor) -> FeatureStore:
    """An open store at `root` with these features under `step_key(0)`, `step_key(1)` and so on."""
    store = FeatureStore(root)
    with flushes_skipped():
        for start in range(0, len(features), _PUT_AT_ONCE):
            batch = features[start : start + _PUT_AT_ONCE]
            store.put_many([PutItem(step_key(start + i), feature) for i, feature in enumerate(batch)])
    return store
