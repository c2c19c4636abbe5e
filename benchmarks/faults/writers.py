"""Crowds of processes on one store: killed at any moment, without locks, with wrong clocks, or left alone."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.outcome import Load, Outcome, check_books
from benchmarks.faults.values import value_of, version_in
from cache_store import FeatureStore, PutItem, RecipeMismatch, StepKey, StoreFull, VideoKey

_ACK = struct.Struct("<II")  # key and version that a writer knows to be stored
_KEYS_PER_SLOT = 24
_RECIPES = [{"weights": "a"}, {"weights": "b"}]


def key_of(number: int) -> StepKey | VideoKey:
    """Every third key is a video's, whose recipe alternates."""
    return VideoKey("Video-MME", f"v{number}", 8, "0a1b2c3d") if number % 3 == 0 else _step(number)


def _step(number: int) -> StepKey:
    return StepKey(f"episode_{number % 7}", number)


def recipe_of(number: int) -> dict[str, str] | None:
    return _RECIPES[number % 2] if number % 3 == 0 else None


def stored(number: int, version: int) -> object:
    value = value_of(number, version)
    return {"vision_features": value} if number % 3 == 0 else value


def version_at(store: FeatureStore, number: int) -> tuple[bool, int | None]:
    """Whether the key is there, and its version; None for a wrong value."""
    found = store.get(key_of(number), recipe=recipe_of(number), on_stale="miss")
    if found is None:
        return False, None
    return True, version_in(found["vision_features"] if isinstance(found, dict) else found, number)


@dataclass(frozen=True)
class Crowd:
    """How the writers of one script behave."""

    limit_bytes: int | None = None
    prepare: Callable[[int], None] | None = None  # called with the slot in each new process
    deletes: bool = False
    limit_may_lag: bool = False  # it holds again once the listings are right
    batch_share: float = 0.0  # of the puts of steps go straight into shards


class Writers:
    """Forked writers, one for each slot of keys, and what they acknowledged."""

    def __init__(self, root: Path, slots: int, crowd: Crowd, seed: int) -> None:
        self._root, self._crowd, self._seed = root, crowd, seed
        self._read_end, self._write_end = os.pipe()
        self._generation = 0
        self.pids: dict[int, int] = {}
        self.acknowledged: dict[int, int] = {}
        for slot in range(slots):
            self.start(slot)

    def start(self, slot: int) -> None:
        self._generation += 1
        pid = os.fork()
        if pid:
            self.pids[slot] = pid
            return
        try:
            os.setsid()
            _work(self._root, slot, self._generation, self._crowd, self._seed, self._write_end)
        except BaseException as exc:  # noqa: BLE001 - the parent counts what a writer could not handle
            print(f"writer {slot}: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)

    def kill(self, slot: int) -> int:
        """Kill a writer; returns its wait status."""
        os.kill(self.pids[slot], signal.SIGKILL)
        return os.waitpid(self.pids.pop(slot), 0)[1]

    def collect(self) -> None:
        """Read the acknowledgements that have arrived."""
        while select.select([self._read_end], [], [], 0)[0]:
            content = os.read(self._read_end, _ACK.size * 2048)
            for key, version in _ACK.iter_unpack(content):
                self.acknowledged[key] = max(version, self.acknowledged.get(key, 0))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold all writers for the length of a `with`: a sum over files that come and go would be wrong."""
        for pid in self.pids.values():
            os.kill(pid, signal.SIGSTOP)
        for pid in self.pids.values():
            while not _is_stopped(pid):
                time.sleep(0.001)
        try:
            yield
        finally:
            for pid in self.pids.values():
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        for slot in list(self.pids):
            self.kill(slot)
        self.collect()
        os.close(self._read_end)
        os.close(self._write_end)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t", b"Z", b"X")


def _work(root: Path, slot: int, generation: int, crowd: Crowd, seed: int, acks: int) -> None:
    if crowd.prepare is not None:
        crowd.prepare(slot)
    chooser = random.Random(f"{seed} {generation}")
    store = FeatureStore(root, limit_bytes=crowd.limit_bytes)
    version = generation << 16
    while True:
        version += 1
        keys = [slot * _KEYS_PER_SLOT + chooser.randrange(_KEYS_PER_SLOT) for _ in range(chooser.choice((1, 1, 1, 4)))]
        keys = list(dict.fromkeys(keys))
        action = chooser.random()
        if action < 0.75:
            steps = [key for key in keys if key % 3]
            is_batch = bool(steps) and chooser.random() < crowd.batch_share
            keys = steps if is_batch else keys
            items = [PutItem(key_of(key), stored(key, version), recipe_of(key)) for key in keys]
            try:
                if is_batch:
                    features = torch.stack([value_of(key, version) for key in keys])
                    store.put_batch([_step(key) for key in keys], features)
                elif len(items) == 1:
                    store.put(items[0].key, items[0].value, recipe=items[0].recipe)
                else:
                    store.put_many(items)
            except StoreFull:
                if not crowd.limit_may_lag:  # a store that is over its limit refuses by name
                    raise
                continue
            os.write(acks, b"".join(_ACK.pack(key, version) for key in keys))
        elif action < 0.9 or not crowd.deletes:
            is_there, found = version_at(store, keys[0])
            if is_there and found is None:
                os._exit(4)
        elif action < 0.97:
            store.delete(key_of(keys[0]), recipe=recipe_of(keys[0]))
        else:
            store.stats()


def fresh(load: Load, name: str) -> Path:
    torch.set_num_threads(1)
    root = load.folder / name
    shutil.rmtree(root, ignore_errors=True)
    return root


def kill9(load: Load) -> Outcome:
    """Writers killed at random moments: nothing acknowledged is lost, nothing is mixed, no limit is passed."""
    outcome = Outcome()
    for name, crowd in {"no limit": Crowd(), "limit": Crowd(limit_bytes=160_000, deletes=True)}.items():
        root = fresh(load, f"kill9-{name}")
        chooser = random.Random(load.seed)
        rounds = max(1, load.count // 2 // 500)
        generation_base = 0
        for _ in range(rounds):
            writers = Writers(root, 6, crowd, load.seed + generation_base)
            writers._generation += generation_base
            for _ in range(load.count // 2 // rounds):
                time.sleep(chooser.random() * 0.02)
                slot = chooser.randrange(6)
                status = writers.kill(slot)
                outcome.counts["kills"] += 1
                outcome.expect(
                    os.WIFSIGNALED(status), f"{name}: a writer had ended with {os.waitstatus_to_exitcode(status)}"
                )
                writers.start(slot)
                writers.collect()
                if outcome.counts["kills"] % 5 == 0:
                    with writers.stopped():
                        _check_limit(root, crowd, outcome, name)
            generation_base = writers._generation
            writers.end()
            check_versions(root, crowd, writers.acknowledged, outcome, name)
    return outcome


def _check_limit(root: Path, crowd: Crowd, outcome: Outcome, where: str) -> None:
    if crowd.limit_bytes is None or crowd.limit_may_lag:
        return
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".pt"):
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(f"{folder}/{name}").st_size
    outcome.counts["looks at the limit"] += 1
    outcome.expect(total <= crowd.limit_bytes, f"{where}: {total} bytes at a limit of {crowd.limit_bytes}")


def check_versions(root: Path, crowd: Crowd, acknowledged: dict[int, int], outcome: Outcome, where: str) -> None:
    with FeatureStore(root) as store:
        for key, version in acknowledged.items():
            is_there, found = version_at(store, key)
            outcome.expect(not is_there or found is not None, f"{where}: key {key} holds a wrong value")
            outcome.counts["acknowledged keys looked up"] += 1
            if crowd.limit_bytes is None and not crowd.deletes:
                outcome.expect(found is not None and found >= version, f"{where}: key {key} lost version {version}")
        check_books(store, outcome, where)
        outcome.expect(store.stats().damaged == 0, f"{where}: readers met {store.stats().damaged} damaged files")


def _together(load: Load, name: str, crowd: Crowd, processes: int, seconds: float) -> Outcome:
    """Let writers run undisturbed for a while; every one of them must still be at work at the end."""
    outcome = Outcome()
    root = fresh(load, name)
    writers = Writers(root, processes, crowd, load.seed)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.1)
        writers.collect()
        with writers.stopped():
            _check_limit(root, crowd, outcome, name)
        for slot, pid in writers.pids.items():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                outcome.problems.append(f"{name}: writer {slot} ended with {os.waitstatus_to_exitcode(status)}")
                del writers.pids[slot]
                break
    writers.end()
    outcome.counts["processes"] = processes
    outcome.counts["seconds"] = int(seconds)
    outcome.counts["keys written"] = len(writers.acknowledged)
    check_versions(root, crowd, writers.acknowledged, outcome, name)
    return outcome


def soak(load: Load) -> Outcome:
    """16 processes put, overwrite, read, delete and count under a limit, for a long time."""
    return _together(load, "soak", Crowd(limit_bytes=600_000, deletes=True), 16, load.seconds)


def no_flock(load: Load) -> Outcome:
    """Locks that everybody gets, that nobody gets, and that the system does not know: the limit holds all the same."""
    outcome = Outcome()
    for name, flock in _BROKEN_LOCKS.items():
        crowd = Crowd(limit_bytes=100_000, deletes=True, prepare=partial(_patch_flock, flock))
        part = _together(load, f"flock {name}", crowd, 8, max(1.0, load.seconds / len(_BROKEN_LOCKS)))
        outcome.counts.update(part.counts)
        outcome.problems += part.problems
    return outcome


def _patch_flock(flock: Callable[[int, int], None], _slot: int) -> None:
    import fcntl

    fcntl.flock = flock  # type: ignore[assignment]


def _granted(_fd: int, _operation: int) -> None:
    return None


def _unknown(_fd: int, _operation: int) -> None:
    raise OSError(38, "Function not implemented")


def _refused(_fd: int, _operation: int) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


_BROKEN_LOCKS = {"granted to all": _granted, "unknown to the system": _unknown}


def clock_skew(load: Load) -> Outcome:
    """A third of the writers live a day ago, a third tomorrow."""
    crowd = Crowd(limit_bytes=150_000, deletes=True, prepare=_shift_clock)
    return _together(load, "clock skew", crowd, 6, load.seconds)


def _shift_clock(slot: int) -> None:
    shift_s = (slot % 3 - 1) * 86_400
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + shift_s
    time.time_ns = lambda: real_ns() + shift_s * 1_000_000_000


def stale_listings(load: Load) -> Outcome:
    """Listings of folders come half a second late, as network file systems cache them."""
    crowd = Crowd(limit_bytes=150_000, prepare=_delay_listings, deletes=True, limit_may_lag=True)
    outcome = _together(load, "stale listings", crowd, 6, load.seconds)
    root = load.folder / "stale listings"
    with FeatureStore(root) as store:
        store.stats()  # lists the files and corrects the books
        store.put(StepKey("new", 0), stored(1, 1))  # the limit is looked at when something grows
    _check_limit(root, Crowd(limit_bytes=150_000), outcome, "stale listings, healed")
    return outcome


def _delay_listings(_slot: int) -> None:
    real = os.scandir
    seen: dict[str, tuple[float, list[os.DirEntry[str]]]] = {}

    @contextmanager
    def scandir(path: Any = ".") -> Iterator[Iterator[os.DirEntry[str]]]:
        known = seen.get(str(path))
        if known is None or time.monotonic() - known[0] > 0.5:
            with real(path) as listing:
                seen[str(path)] = known = (time.monotonic(), list(listing))
        yield iter(known[1])

    def listdir(path: str | Path = ".") -> list[str]:
        with scandir(path) as listing:
            return [item.name for item in listing]

    os.scandir = scandir  # type: ignore[assignment]
    os.listdir = listdir  # type: ignore[assignment]


def first_use(load: Load) -> Outcome:
    """Processes that open one new store and put at the same instant, again and again."""
    outcome = Outcome()
    for number in range(load.count):
        root = fresh(load, "first")
        pids = list(_started_together(root, 4, number))
        for pid in pids:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            outcome.expect(code == 0, f"first use {number}: a process ended with {code}")
        with FeatureStore(root) as store:
            outcome.expect(len(list(store.keys())) == 4 * 3, f"first use {number}: entries are missing")
            outcome.expect(store.limit_bytes == 10_000_000, f"first use {number}: the limit was not kept")
            owners = {path.name for path in root.glob("Video-MME*")}
            outcome.expect(len(owners) == 2, f"first use {number}: folders {owners}")
            check_books(store, outcome, f"first use {number}")
        outcome.counts["first uses"] += 1
    return outcome


def _started_together(root: Path, processes: int, number: int) -> Iterator[int]:
    gate_read, gate_write = os.pipe()
    for slot in range(processes):
        pid = os.fork()
        if pid:
            yield pid
            continue
        try:
            os.close(gate_write)
            os.read(gate_read, 1)
            with FeatureStore(root, limit_bytes=10_000_000) as store:
                store.put(StepKey("episode", slot), value_of(slot, number))
                for video in (f"a{slot}", f"b{slot}"):
                    key = VideoKey("Video-MME", video, 8, "0a1b2c3d")
                    store.put(key, {"vision_features": value_of(slot, number)}, recipe=_RECIPES[slot % 2])
        except BaseException as exc:  # noqa: BLE001 - counted by the parent
            print(f"first use: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    os.close(gate_read)
    os.close(gate_write)


def readers(load: Load) -> Outcome:
    """Readers of entries that are evicted all the time get the right value or a miss."""
    crowd = Crowd(limit_bytes=60_000, deletes=True)
    outcome = _together(load, "readers", crowd, 4, load.seconds)
    root = load.folder / "readers"
    with FeatureStore(root) as store:
        for key in range(4 * _KEYS_PER_SLOT):
            try:
                is_there, found = version_at(store, key)
            except RecipeMismatch:
                continue
            outcome.expect(not is_there or found is not None, f"readers: key {key} holds a wrong value")
            outcome.counts["reads"] += 1
    return outcome
