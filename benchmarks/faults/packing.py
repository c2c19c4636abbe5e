"""Stores that are packed and unpacked while they are used: killed at any moment, on full disks, by two at once."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.faults.outcome import Load, Outcome, check_books
from benchmarks.faults.values import value_of, version_in
from benchmarks.faults.writers import Crowd, Writers, check_versions, fresh
from cache_store import CacheStoreError, FeatureStore, StepKey, StoreFull, packing

_ENTRIES = 60


def pack_kill(load: Load) -> Outcome:
    """Packers and unpackers killed at random moments, alone and while others put, into shards too, delete and evict."""
    outcome = Outcome()
    packing.SHARD_BYTES = 20_000
    _killed_alone(load, outcome)
    for name, crowd in {
        "puts": Crowd(batch_share=0.3),
        "puts, deletes and a limit": Crowd(limit_bytes=300_000, deletes=True, batch_share=0.3),
    }.items():
        _killed_among_writers(load, name, crowd, outcome)
    return outcome


def _killed_alone(load: Load, outcome: Outcome) -> None:
    """Nobody else writes: every entry is there after every kill, and comes out as the file that it was."""
    root = fresh(load, "pack-alone")
    chooser = random.Random(load.seed)
    with FeatureStore(root) as store:
        for index in range(_ENTRIES):
            store.put(StepKey("episode", index), value_of(index, 1))
    before = {path.name: path.read_bytes() for path in root.glob("*.pt")}
    for number in range(load.count // 2):
        pids = [_forked(root, chooser.random() < 0.5, load.seed + number + place) for place in range(number % 2 + 1)]
        time.sleep(chooser.random() * 0.03)
        for pid in pids:
            _kill(pid)
            outcome.counts["kills"] += 1
        with FeatureStore(root) as store:
            for index in range(_ENTRIES):
                is_right = version_in(store.get(StepKey("episode", index)), index) == 1
                outcome.expect(is_right, f"kill {number}: entry {index} is lost or wrong")
            if number % 10 == 0:
                check_books(store, outcome, f"kill {number}")
    with FeatureStore(root) as store:
        store.unpack()
        after = {path.name: path.read_bytes() for path in root.glob("*.pt")}
        outcome.expect(after == before, "unpacked files differ from what was packed")
        check_books(store, outcome, "unpacked")


def _killed_among_writers(load: Load, name: str, crowd: Crowd, outcome: Outcome) -> None:
    root = fresh(load, f"pack-{len(name)}")
    chooser = random.Random(load.seed)
    writers = Writers(root, 3, crowd, load.seed)
    packers: list[int] = []
    for number in range(load.count // 4):
        packers.append(_forked(root, chooser.random() < 0.3, number))
        time.sleep(chooser.random() * 0.05)
        if len(packers) == 2:
            _kill(packers.pop(chooser.randrange(2)))
        slot = chooser.randrange(3)
        status = writers.kill(slot)
        outcome.expect(os.WIFSIGNALED(status), f"{name}: a writer ended with {os.waitstatus_to_exitcode(status)}")
        writers.start(slot)
        writers.collect()
        outcome.counts["kills"] += 2
    for pid in packers:
        _kill(pid)
    writers.end()
    check_versions(root, crowd, writers.acknowledged, outcome, name)
    with FeatureStore(root) as store:
        store.pack()
    check_versions(root, crowd, writers.acknowledged, outcome, f"{name}, packed")


def _forked(root: Path, unpacks: bool, seed: int) -> int:
    """A process that packs and unpacks until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        chooser = random.Random(seed)
        store = FeatureStore(root)
        while True:
            work: Callable[..., object] = store.unpack if unpacks else store.pack
            with contextlib.suppress(StoreFull):  # copies that are kept evict nothing
                work(keep=chooser.random() < 0.2)
            unpacks = not unpacks
    except BaseException as exc:  # noqa: BLE001 - the parent counts what a packer could not handle
        print(f"packer: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        os._exit(3)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"a packer had ended with {os.waitstatus_to_exitcode(status)}")


def pack_full_disk(load: Load) -> Outcome:
    """A disk with room for ever fewer files: packing fails by name or succeeds, and loses nothing."""
    outcome = Outcome()
    packing.SHARD_BYTES = 100_000
    torch.set_num_threads(1)
    disk = load.folder / "pack-disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        outcome.counts[f"skipped, mount is refused: {mounted.stderr.decode().strip()}"] = 1
        return outcome
    try:
        for number in range(load.count):
            _pack_on_full_disk(disk, number, load, outcome)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return outcome


def _pack_on_full_disk(disk: Path, number: int, load: Load, outcome: Outcome) -> None:
    shutil.rmtree(disk / "store", ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(disk / "ballast")
    with FeatureStore(disk / "store") as store:
        for index in range(_ENTRIES):
            store.put(StepKey("episode", index), value_of(index, 1))
        if number % 2:
            store.pack()
        free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        room_bytes = 300_000 * (number // 2) // max(1, load.count // 2)
        (disk / "ballast").write_bytes(bytes(max(0, free_bytes - room_bytes)))
        try:
            (store.unpack if number % 2 else store.pack)()
            outcome.counts["succeeded"] += 1
        except CacheStoreError:
            outcome.counts["named errors"] += 1
        for index in range(_ENTRIES):
            is_right = version_in(store.get(StepKey("episode", index)), index) == 1
            outcome.expect(is_right, f"full disk {number}: entry {index} is lost")
        os.unlink(disk / "ballast")
        store.pack()
        check_books(store, outcome, f"full disk {number}")
