"""Reads every file of a store and checks its checksums, on all CPUs; sets damaged ones aside when asked to."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, cast

from cache_store import archive, naming
from cache_store.errors import StoreReadError, StoreWriteError
from cache_store.reports import Problem, VerifyProgress, VerifyReport
from cache_store.scan import is_folder

SetAside = Callable[[str, str], str | None]

_MOST_WORKERS = 16  # more only make a disk seek
_CHUNK_FILES = 64
# Checking small files is mostly Python, which threads do one after another; below this number, starting
# processes takes longer than the checks.
_PROCESSES_FROM_FILES = 4096


@dataclass
class Listing:
    """What the folders of a store hold, by names alone."""

    features: list[str] = field(default_factory=list)
    not_features: list[str] = field(default_factory=list)  # end in `.pt`, but no feature is called so
    problems: list[Problem] = field(default_factory=list)  # folders that cannot be listed


class Checked(NamedTuple):
    """What became of one name; as a list it travels between processes."""

    name: str
    reason: str | None  # None for a sound file, and for one that went away
    bytes: int | None  # None: nothing was there to check
    is_damaged: bool  # its content is wrong; else the disk or its permissions are
    identity: list[int]  # of the file that was read


def listed(root: Path) -> Listing:
    """Every `.pt` name in the root and the folders in it, each folder's in order."""
    listing = Listing()
    folders = _names(root, "", listing)
    for folder in folders:
        _names(root, folder, listing)
    return listing


def _names(root: Path, folder: str, listing: Listing) -> list[str]:
    """Note the names of one folder; returns the folders in it that are not hidden."""
    folders = []
    try:
        with os.scandir(root / folder) as items:
            for item in items:
                relative = f"{folder}/{item.name}" if folder else item.name
                if naming.is_feature(relative):
                    listing.features.append(relative)
                elif not item.name.startswith(".") and is_folder(item):
                    folders.append(relative)
                elif item.name.endswith(naming.SUFFIX):
                    listing.not_features.append(relative)
    except FileNotFoundError:
        # Removed since the root was listed.
        return []
    except OSError as exc:
        listing.problems.append(Problem(folder or ".", f"the folder cannot be listed: {exc.strerror or exc}"))
    return sorted(folders)


def verify_files(
    root: Path,
    progress: Callable[[VerifyProgress], None] | None,
    *,
    workers: int | None = None,
    set_aside: SetAside | None = None,
    only: Collection[str] | None = None,
) -> VerifyReport:
    """Check the structure and every checksum of all features, or of `only` these names, without torch.

    `workers` is the number of processes (of threads where there are few files), None: one per CPU, 16 at most.
    `set_aside(name, reason)` moves a damaged file out of the way and returns where to; a file that was replaced since
    it was read is read again first. `progress` is called by one worker thread at a time.

    Raises:
        ValueError: `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers check nothing; give at least 1, or None for one per CPU")
    listing = listed(root)
    if only is not None:
        listing.features = [name for name in listing.features if name in only]
    run = _Run(root, listing, progress, set_aside)
    count = min(workers or min(_cpus(), _MOST_WORKERS), max(1, len(listing.features)))
    with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
        uses_processes = count > 1 and len(listing.features) >= _PROCESSES_FROM_FILES
        checkers = [stack.enter_context(_checker(root, in_process=not uses_processes)) for _ in range(count)]
        tasks = [pool.submit(run.work, checker) for checker in checkers]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
        for task in tasks:
            task.result()
    return run.report()


Check = Callable[[list[str]], list[Checked]]


class _Run:
    """One verification: hands out names, a few at a time, and collects what was found. Its lock makes it safe."""

    def __init__(
        self,
        root: Path,
        listing: Listing,
        progress: Callable[[VerifyProgress], None] | None,
        set_aside: SetAside | None,
    ) -> None:
        self._root = root
        self._listing = listing
        self._names = iter(listing.features)
        self._progress = progress
        self._set_aside = set_aside
        self._lock = threading.Lock()
        self._problems = list(listing.problems)
        self._files = self._checked = self._bytes = 0
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True

    def work(self, check: Check) -> None:
        """Check names until none is left."""
        size = 1
        while True:
            with self._lock:
                names = [] if self._is_stopped else list(itertools.islice(self._names, size))
            if not names:
                return
            results = check(names)
            with self._lock:
                self._note(results)
            # Videos of gigabytes are handed out singly, so that the last worker is not left with many.
            large = sum(result.bytes or 0 for result in results) > len(results) << 20
            size = 1 if large else min(size * 2, _CHUNK_FILES)

    def _note(self, results: list[Checked]) -> None:
        for result in results:
            self._files += 1
            if result.bytes is not None:
                self._checked += 1
                self._bytes += result.bytes
            if result.reason is not None:
                self._note_problem(result)
        if self._progress is not None:
            total = len(self._listing.features)
            self._progress(VerifyProgress(self._files, total, self._bytes, len(self._problems)))

    def _note_problem(self, result: Checked) -> None:
        if self._set_aside is None or not result.is_damaged:
            self._problems.append(Problem(result.name, str(result.reason)))
            return
        if _identity(self._root / result.name) != result.identity:
            # A writer has replaced it since: only what is there now may be moved.
            result = checked(self._root, result.name)
            if result.reason is None or not result.is_damaged:
                return
        try:
            target = self._set_aside(result.name, str(result.reason))
        except StoreWriteError as exc:
            self._problems.append(Problem(result.name, f"{result.reason}; it could not be set aside: {exc.reason}"))
            return
        self._problems.append(Problem(result.name, str(result.reason), target))

    def report(self) -> VerifyReport:
        return VerifyReport(
            checked=self._checked,
            problems=sorted(self._problems, key=lambda problem: problem.path),
            repaired=self._set_aside is not None,
            bytes=self._bytes,
            not_features=sorted(self._listing.not_features),
        )


def checked(root: Path, name: str) -> Checked:
    """Check one file."""
    path = root / name
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever; and a folder is nobody's feature, so nothing is set aside.
            return Checked(name, "not a file", 0, False, [])
        reason = archive.check(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return Checked(name, "a symbolic link to a file that is not there", 0, False, [])
        return Checked(name, None, None, False, [])
    except StoreReadError as exc:
        return Checked(name, f"cannot be read: {exc.reason}", 0, False, [])
    except OSError as exc:
        return Checked(name, f"cannot be read: {exc.strerror or exc}", 0, False, [])
    return Checked(name, reason, status.st_size, reason is not None, _identity_of(status))


def _identity(path: Path) -> list[int] | None:
    try:
        return _identity_of(os.stat(path))
    except OSError:
        # Gone, or out of reach: not what was read.
        return None


def _identity_of(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_mtime_ns, status.st_size]


def _checker(root: Path, *, in_process: bool) -> AbstractContextManager[Check]:
    if in_process:
        return nullcontext(lambda names: [checked(root, name) for name in names])
    return _Child(root)


class _Child:
    """Another process that checks. Not of multiprocessing: that would start the caller's script once more."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Check:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from cache_store.verification import serve; serve()", str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self._questions = cast(IO[str], self._process.stdin)
        self._answers = cast(IO[str], self._process.stdout)
        return self._check

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _check(self, names: list[str]) -> list[Checked]:
        try:
            return [Checked(*fields) for fields in json.loads(self._asked(names))]
        except (OSError, ValueError):
            # Killed for memory, perhaps: the work goes on here.
            return [checked(self._root, name) for name in names]

    def _asked(self, names: list[str]) -> str:
        self._questions.write(json.dumps(names) + "\n")
        self._questions.flush()
        return self._answers.readline()


def serve() -> None:
    """The life of a checking process: a line of names in, a line of results out. The root is its argument."""
    # The parent answers to Ctrl-C, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _answer(Path(sys.argv[1]), sys.stdin, sys.stdout)


def _answer(root: Path, questions: Iterable[str], answers: IO[str]) -> None:
    for line in questions:
        answers.write(json.dumps([checked(root, name) for name in json.loads(line)]) + "\n")
        answers.flush()


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
