"""Every system call of the write and read paths fails once, each alone: an error with a name, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.outcome import Load, Outcome, check_books
from benchmarks.faults.values import value_of, version_in
from cache_store import CacheStoreError, FeatureStore, PutItem, StepKey, StoreFull, VideoKey, ledger

_CALLS = (
    "open", "write", "writev", "fsync", "replace", "rename", "link", "unlink", "mkdir", "utime", "stat", "fstat",
    "read", "readv", "pread", "preadv", "listdir", "pwrite", "lstat", "rmdir",
)  # fmt: skip
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.ESTALE)
_OLD, _NEW = 1, 2
_KEY, _OTHER = StepKey("episode", 1), StepKey("episode", 2)
_VIDEO = VideoKey("Video-MME", "v", 8, "0a1b2c3d")


@contextmanager
def failing(number: int, code: int) -> Iterator[list[str]]:
    """Let the `number`-th of the counted calls fail with `code`; yields the names of the calls that were made."""
    made: list[str] = []
    real = {name: getattr(os, name) for name in _CALLS}

    def guarded(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == number:
                raise OSError(code, os.strerror(code))
            return real[name](*args, **options)

        return call

    for name in _CALLS:
        setattr(os, name, guarded(name))
    try:
        yield made
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _put_new(store: FeatureStore) -> None:
    store.put(_OTHER, value_of(2, _NEW))


def _put_over(store: FeatureStore) -> None:
    store.put(_KEY, value_of(1, _NEW))


def _put_video(store: FeatureStore) -> None:
    store.put(_VIDEO, {"vision_features": value_of(3, _NEW)}, recipe={"weights": "b"})


def _put_many(store: FeatureStore) -> None:
    store.put_many([PutItem(_KEY, value_of(1, _NEW)), PutItem(_OTHER, value_of(2, _NEW))])


def _evict(store: FeatureStore) -> None:
    store.set_limit(10_000, remember=False)
    store.put_many([PutItem(StepKey("more", index), value_of(index, _NEW)) for index in range(3)])


def _fold(store: FeatureStore) -> None:
    before, ledger._FOLD_TAIL_BYTES, ledger._FOLD_TAIL_BYTES_PER_ENTRY = ledger._FOLD_TAIL_BYTES, 0, 0
    try:
        store.close()
    finally:
        ledger._FOLD_TAIL_BYTES, ledger._FOLD_TAIL_BYTES_PER_ENTRY = before, 32


_OPERATIONS: dict[str, Callable[[FeatureStore], object]] = {
    "put": _put_new,
    "overwrite": _put_over,
    "put of a second recipe": _put_video,
    "put_many": _put_many,
    "create-only put": lambda store: store.put(_OTHER, value_of(2, _NEW), create_only=True),
    "eviction": _evict,
    "delete": lambda store: store.delete(_OTHER),
    "compaction": _fold,
    "pin": lambda store: store.pin(["episode"]),
    "set_limit": lambda store: store.set_limit(1 << 30),
    "stats": lambda store: store.stats(),
    "get": lambda store: store.get(_KEY),
    "get of a large feature": lambda store: store.get(_VIDEO),
    "prune": lambda store: store.prune(datasets=["nothing"]),
    "pack": lambda store: store.pack(),
    "unpack": lambda store: store.unpack(),
    "get_batch": lambda store: store.get_batch([_KEY, _KEY]),
    "verify": lambda store: store.verify(workers=1),
}
# These do something else where the features are packed.
_ON_PACKED = ("overwrite", "eviction", "delete", "stats", "get", "unpack", "get_batch", "verify")


def syscalls(load: Load) -> Outcome:
    """Each operation once for each of its calls and each error."""
    outcome = Outcome()
    errors = _ERRORS[: load.count] if load.count else _ERRORS
    template = load.folder / "template"
    with FeatureStore(template) as store:
        store.put(_KEY, value_of(1, _OLD))
        store.put(_VIDEO, {"vision_features": torch.zeros(100, 1024)}, recipe={"weights": "a"})
        store.stats()
    packed = load.folder / "packed"
    shutil.copytree(template, packed)
    with FeatureStore(packed) as store:
        store.pack()
    runs = [(template, name) for name in _OPERATIONS] + [(packed, name) for name in _ON_PACKED]
    for start, name in runs:
        number = 1
        while _once(load.folder / "store", start, name, _OPERATIONS[name], number, errors, outcome):
            number += 1
        outcome.counts["operations"] += 1
    return outcome


def _once(
    root: Path,
    template: Path,
    name: str,
    operation: Callable[[FeatureStore], object],
    number: int,
    errors: tuple[int, ...],
    outcome: Outcome,
) -> bool:
    """Let the call of this number fail with each error; False when the operation makes fewer calls."""
    for code in errors:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        where = f"{name}, call {number}, {errno.errorcode[code]}"
        with FeatureStore(root) as store:
            store.get(_KEY)
            with failing(number, code) as made:
                try:
                    operation(store)
                    outcome.counts["operations that succeeded all the same"] += 1
                except CacheStoreError:
                    outcome.counts["named errors"] += 1
                except OSError as exc:
                    outcome.problems.append(f"{where} ({made[-1]}): {type(exc).__name__}: {exc}")
            if len(made) < number:
                return False
            outcome.counts["injected faults"] += 1
            store.set_limit(0, remember=False)
            _check_after(store, outcome, f"{where} ({made[number - 1]})")
    return True


def _check_after(store: FeatureStore, outcome: Outcome, where: str) -> None:
    found = store.get(_KEY)
    is_evicted = found is None and where.startswith("eviction")
    outcome.expect(is_evicted or version_in(found, 1) in (_OLD, _NEW), f"{where}: the old value is gone")
    other = store.get(_OTHER)
    outcome.expect(other is None or version_in(other, 2) == _NEW, f"{where}: a wrong value")
    store.put(StepKey("after", 0), value_of(9, 9))
    outcome.expect(version_in(store.get(StepKey("after", 0)), 9) == 9, f"{where}: the next put is lost")
    check_books(store, outcome, where)
    # Of a sound file nothing is ever set aside because a disk failed.
    outcome.expect(not list(store.root.glob(".vlm-cache/quarantine/*")), f"{where}: a sound file was set aside")


def full_disk(load: Load) -> Outcome:
    """A real file system without room: puts fail by name, and go on when there is room again."""
    outcome = Outcome()
    disk = load.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        outcome.counts[f"skipped, mount is refused: {mounted.stderr.decode().strip()}"] = 1
        return outcome
    try:
        with FeatureStore(disk / "store") as store:
            stored: dict[int, int] = {}
            for index in range(load.count * 3):
                try:
                    store.put(StepKey("episode", index), value_of(index, index))
                    stored[index] = index
                except CacheStoreError:
                    outcome.counts["named errors"] += 1
                    if outcome.counts["named errors"] % 10 == 0 and stored:
                        store.delete(StepKey("episode", stored.popitem()[0]))
            for index, version in stored.items():
                found = version_in(store.get(StepKey("episode", index)), index)
                outcome.expect(found == version, f"full disk: entry {index} is lost")
            outcome.counts["entries that were kept"] = len(stored)
            outcome.expect(outcome.counts["named errors"] > 0, "full disk: it never was full")
            store.delete(StepKey("episode", stored.popitem()[0]))
            check_books(store, outcome, "full disk")
            store.set_limit(20_000, remember=False)
            try:
                store.put(StepKey("episode", 10**6), value_of(1, 1))
            except (StoreFull, CacheStoreError) as exc:
                outcome.counts[f"put under a limit on a full disk: {type(exc).__name__}"] += 1
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return outcome
