"""Rows `pack` and `unpack`: loose files into shards and back, beside plain copies and the formats' own writers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.packed.formats import FORMATS
from benchmarks.packed.scale import Scale
from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped, settle_disk
from benchmarks.store.keys import step_key
from benchmarks.store.peers import Peer, filled_peer
from benchmarks.store.report import Row, lines_of, not_measured
from benchmarks.store.small_reads import check_equal, filled_store
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureStore
from cache_store.packing import PackReport

PACK_BASE = "raw: open, read, close each file, write all into one"
UNPACK_BASE = "raw: read one file, write each part as a file of its own"
_CHECKED = 20


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Both rows, from one run: each round packs, and then unpacks the same features."""
    features = small_features(scale.packed, scale.width)
    with ExitStack() as cleanup:
        store = cleanup.enter_context(filled_store(folder / "store", features))
        source = cleanup.enter_context(filled_store(folder / "loose", features))
        files = [store.root / path.name for path in sorted(store.root.glob("*.pt"))]
        contents = [file.read_bytes() for file in files]
        check(store, features, files, contents)
        loose = [source.root / file.name for file in files]
        packing = [
            Contestant(PACK_BASE, len(files), lambda _: _into_one(loose, folder / "one"), settle_disk),
            _whole(store.pack, "pack", store, scale),
        ]
        unpacking = [
            _whole(store.unpack, "unpack", store, scale),
        ]
        unflushed = [
            _whole(_without_flush(store.pack), "pack, without flush", store, scale),
            _whole(_without_flush(store.unpack), "unpack, without flush", store, scale),
        ]
        parts = list(map(len, contents))
        split = Contestant(
            UNPACK_BASE,
            len(files),
            lambda number: _into_files(folder / "one", parts, folder / f"raw-{number}"),
            lambda number: _emptied(folder / f"raw-{number - 1}"),
        )
        absent = [not_measured(kind.name, "not installed") for kind in FORMATS if not kind.is_installed()]
        peers = [_peer(kind, folder, source, features) for kind in FORMATS if kind.is_installed()]
        # Their order is one round: what is packed is unpacked before it is packed again.
        every = [*packing, *unpacking, *unflushed, split, *peers]
        times_s = interleaved_s(every, rounds=scale.pack_rounds)
    into = [*packing, unflushed[0], *peers]
    out_of = [split, *unpacking, unflushed[1]]
    what = f"{scale.packed:,} features [1, 1, {scale.width}] float16"
    rounds = f"{scale.pack_rounds} rounds in turns; the disk is settled before each turn."
    return [
        Row(
            "pack",
            f"pack {what}",
            "µs per feature",
            [*lines_of(into, times_s, base=PACK_BASE, unit_s=1e-6), *absent],
            [
                f"{rounds} pack verifies every checksum, flushes the shard, reads it back and removes the files.",
                "All others leave the files, and none flushes. Formats get features by FeatureStore.get from files.",
            ],
        ),
        Row(
            "unpack",
            f"unpack {what}",
            "µs per feature",
            lines_of(out_of, times_s, base=UNPACK_BASE, unit_s=1e-6),
            [f"{rounds} unpack verifies every checksum and flushes the files. None of the formats unpacks."],
        ),
    ]


def check(store: FeatureStore, features: torch.Tensor, files: list[Path], contents: list[bytes]) -> None:
    """Refuse to time a pack that loses a bit, or an unpack that gives other files.

    Raises:
        RuntimeError: it does.
    """
    store.pack()
    if any(file.exists() for file in files):
        raise RuntimeError("pack left files behind")
    keys: Any = [step_key(index) for index in range(len(features))]
    check_equal("a packed store", store.get_batch(keys).features, features)
    store.unpack()
    if [file.read_bytes() for file in files] != contents:
        raise RuntimeError("unpack gives other files than were packed")


def _whole(work: Callable[[], PackReport], name: str, store: FeatureStore, scale: Scale) -> Contestant:
    def run(_: int) -> None:
        report = work()
        if report.files != scale.packed or report.problems:
            raise RuntimeError(f"{name}: {report.files:,} of {scale.packed:,} features, {report.problems[:1]}")

    return Contestant(f"vlm-cache {name}", scale.packed, run, settle_disk)


def _without_flush(work: Callable[[], PackReport]) -> Callable[[], PackReport]:
    def unflushed() -> PackReport:
        with flushes_skipped():
            return work()

    return unflushed


def _into_one(files: list[Path], target: Path) -> None:
    with open(target, "wb") as one:
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            one.write(os.read(fd, 1 << 20))
            os.close(fd)


def _into_files(source: Path, parts: list[int], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with open(source, "rb") as one:
        for index, size in enumerate(parts):
            fd = os.open(f"{folder}/{index}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(fd, one.read(size))
            os.close(fd)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    settle_disk()


def _peer(kind: type[Peer], folder: Path, source: FeatureStore, features: torch.Tensor) -> Contestant:
    keys = [step_key(index) for index in range(len(features))]
    if kind.can_read:
        peer = filled_peer(kind, folder / "checked", features[:_CHECKED])
        for index, feature in enumerate(features[:_CHECKED]):
            check_equal(kind.name, peer.read(index), feature)
        peer.close()

    def run(number: int) -> None:
        peer = kind(folder / f"{kind.module}-{number}", features[0])
        for index, key in enumerate(keys):
            feature: Any = source.get(key)
            peer.write(index, feature)
        peer.finish()
        peer.close()

    def prepare(number: int) -> None:
        _emptied(folder / f"{kind.module}-{number - 1}")

    return Contestant(f"{kind.name}, written", len(features), run, prepare)
