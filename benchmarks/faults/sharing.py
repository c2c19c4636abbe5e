"""Stores that several users share, that cannot be written, and keys that try to leave them."""

from __future__ import annotations

import os
import random
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.outcome import Load, Outcome, check_books
from benchmarks.faults.values import value_of, version_in
from cache_store import CacheStoreError, FeatureStore, InvalidKey, StepKey, VideoKey

_GROUP = 4242
_USERS = (4301, 4302)


def _as_user(user: int, work: Callable[[], None]) -> int:
    """Run `work` in a child process of another user of the group; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(_GROUP)
            os.setuid(user)
            os.umask(0o002)
            work()
        except BaseException as exc:  # noqa: BLE001 - the parent counts it
            print(f"user {user}: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _import_all(root: Path) -> None:
    """Use every part of a store once: another user may not be allowed to read the interpreter's own files."""
    with FeatureStore(root, limit_bytes=5_000) as store:
        for index in range(5):
            store.put(StepKey("episode", index), value_of(index, 1))
        store.get(StepKey("episode", 4))
        store.verify(workers=1)
        store.stats()
    shutil.rmtree(root)


def users(load: Load) -> Outcome:
    """Two users of one group write, read, evict and count in turns."""
    outcome = Outcome()
    if os.geteuid() != 0:
        outcome.counts["skipped, only root can become other users"] = 1
        return outcome
    root = load.folder / "shared"
    os.chmod(load.folder, 0o755)
    root.mkdir()
    os.chown(root, 0, _GROUP)
    os.chmod(root, 0o2775)
    _import_all(load.folder / "imports")
    for number in range(load.count):

        def work(number: int = number) -> None:
            with FeatureStore(root, limit_bytes=40_000) as store:
                for index in range(6):
                    store.put(StepKey("episode", (number * 3 + index) % 40), value_of(index, number))
                key = VideoKey("Video-MME", f"v{number % 3}", 8, "0a1b2c3d")
                store.put(key, {"vision_features": value_of(1, number)}, recipe={"weights": str(number % 2)})
                store.delete(StepKey("episode", (number * 3 + 7) % 40))
                assert store.get(StepKey("episode", (number * 3 + 5) % 40)) is not None
                store.stats()

        code = _as_user(_USERS[number % 2], work)
        outcome.expect(code == 0, f"turn {number} ended with {code}")
        outcome.counts["turns"] += 1
    with FeatureStore(root) as store:
        check_books(store, outcome, "users")
        total = store.stats().bytes
        outcome.expect(total <= 40_000, f"{total} bytes at a limit of 40000")
    return outcome


def read_only(load: Load) -> Outcome:
    """A user without any right to write reads everything, and is told by name when it tries to write."""
    outcome = Outcome()
    if os.geteuid() != 0:
        outcome.counts["skipped, only root can become other users"] = 1
        return outcome
    root = load.folder / "read-only"
    os.chmod(load.folder, 0o755)
    with FeatureStore(root, limit_bytes=10**6) as store:
        for index in range(5):
            store.put(StepKey("episode", index), value_of(index, 7))
        (store.root / "closed").mkdir(mode=0o700)
        unreadable = store.put(StepKey("secret", 0), value_of(0, 0))
        unreadable.chmod(0o600)
    for folder in (root, *root.rglob("*")):
        if folder.is_dir() and folder.name != "closed":
            folder.chmod(0o755)

    def work() -> None:
        reader = FeatureStore(root)
        assert all(version_in(reader.get(StepKey("episode", index)), index) == 7 for index in range(5))
        assert reader.stats().entries == 6
        found = reader.verify(workers=1)
        assert {problem.path for problem in found.problems} == {"closed", "secret_vlm0.pt"}, found.problems
        attempts: tuple[Callable[[], object], ...] = (
            lambda: reader.put(StepKey("episode", 9), value_of(1, 1)),
            lambda: reader.delete(StepKey("episode", 0)),
            lambda: reader.pin(["episode"]),
            lambda: reader.get(StepKey("secret", 0)),
        )
        for attempt in attempts:
            try:
                attempt()
            except CacheStoreError:
                continue
            raise AssertionError("a write was not refused")
        reader.close()

    code = _as_user(_USERS[0], work)
    outcome.expect(code == 0, f"the reader ended with {code}")
    outcome.counts["refused writes and reads"] = 4
    return outcome


_ALPHABET = [
    "a",
    "B",
    "_vlm",
    "_vlm3",
    "..",
    "/",
    "\\",
    "\0",
    "\n",
    ".",
    " ",
    "@",
    "é",
    "e\u0301",
    "\u202e",
    "😀",
    "%",
    ":",
    "*",
    "CON",
]


def keys(load: Load) -> Outcome:
    """Hostile names: refused by name, or stored inside the store, read back exactly and listed as themselves."""
    outcome = Outcome()
    chooser = random.Random(load.seed)
    root = load.folder / "keys"
    before = {root, *load.folder.iterdir()}
    names = [
        "../x",
        "/etc/passwd",
        "a\0b",
        "x" * 5000,
        "a_vlm3_vlm7",
        "..",
        ".",
        "",
        " ",
        "a/../b",
        "~",
        "-rf",
        "é",
        "e\u0301",
    ]
    while len(names) < load.count:
        names.append("".join(chooser.choice(_ALPHABET) for _ in range(chooser.randrange(1, 7))))
    stored: dict[StepKey, int] = {}
    with FeatureStore(root) as store:
        for number, name in enumerate(dict.fromkeys(names)):
            key = StepKey(name, number)
            try:
                path = store.put(key, value_of(number, 1))
            except InvalidKey:
                outcome.counts["refused by name"] += 1
                continue
            outcome.expect(path.resolve().parent == root.resolve(), f"{name!r} left the store: {path}")
            stored[key] = number
            outcome.counts["stored"] += 1
        for key, number in stored.items():
            outcome.expect(version_in(store.get(key), number) == 1, f"{key} does not read back")
        outcome.expect(set(store.keys()) == set(stored), "the listed keys are not the stored ones")
        forms = {unicodedata.normalize("NFC", key.dataset) for key in stored}
        outcome.counts["names that differ in their Unicode form only"] = len({key.dataset for key in stored}) - len(
            forms
        )
        check_books(store, outcome, "keys")
    outside = set(load.folder.iterdir()) - before
    outcome.expect(not outside, f"files outside the store: {outside}")
    return outcome
