"""The folder of one build's run: what was asked for, its events, a dead letter for each failed unit, and the report."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from cache_store import recipe_fingerprint
from cache_store.naming import RUNS
from jobs.run_files import BUILD, EVENTS, FAILED, PAGE, REPORT
from pipeline.errors import BuildRefused
from pipeline.failures import UnitFailure
from pipeline.lanes import BuildReport, failure_to_json
from pipeline.run_events import RunEvents
from pipeline.sources import Question, absolute, write_questions
from pipeline.sources.media_path import UrlPath
from pipeline.sources.question_table import FILE_NAME as QUESTIONS
from pipeline.version import NOT_INSTALLED, VERSION, version_of

RUNS_KEPT = 100  # in a store; a folder that --report names is never removed
_AT_WORK_S = 86400.0  # a build that wrote nothing for a day is taken for ended
NOT_ASKED_AGAIN = ("command", "json", "report")
_LIBRARIES = ("torch", "transformers", "ray", "numpy", "pillow", "av", "decord")


class RunFolder:
    """Writes the folder. That it cannot be written is told once and stops nothing: hours went into the features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = _versions()
        self._is_told = False
        self._lock: IO[str] | None = None

    @classmethod
    def asked_for(cls, folder: Path) -> RunFolder:
        """Return the folder that a person named, locked until it is closed or this process ends.

        Where the file system has no locks, or keeps them to each host, another build is not noticed.

        Raises:
            BuildRefused: another build is writing to it, and would lose its dead letters; or it cannot be written,
                which is better known before the build than after it.
        """
        found = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found._lock = (folder / FAILED).open("a")
        except OSError as exc:
            raise BuildRefused(f"--report: {folder} cannot be written: {exc}") from exc
        try:
            # Not filelock's: without flock it takes a file for a lock, which would outlive a killed build.
            fcntl.flock(found._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            found.close()
            raise BuildRefused(f"--report: a build at work writes to {folder}; name another folder") from exc
        except OSError:
            pass  # Lustre without flock raises ENOSYS
        return found

    @classmethod
    def in_store(cls, store_root: Path, run: str) -> RunFolder:
        """Return the folder of run `run` in a store, and forget the runs that wrote longest ago.

        One without a report may be at work: it is kept for a day after its last write, and counts among those kept.
        """
        runs = store_root / RUNS
        _forget_oldest(runs)
        return cls(runs / run)

    def begin(self, args: argparse.Namespace, recipe: Mapping[str, Any]) -> RunEvents:
        """Write down what was asked for, `recipe` being what all units share; what is there of an earlier run goes.

        Returns what is to be told of the events.
        """
        asked = {name: _plain(value) for name, value in vars(args).items() if name not in NOT_ASKED_AGAIN}
        if args.model != "small" and os.path.isdir(args.model):
            asked["model"] = os.path.abspath(args.model)  # as all paths: a retry may start elsewhere
        facts = {
            "arguments": asked,
            "recipe_fingerprint": recipe_fingerprint(recipe),
            "host": socket.gethostname(),
            "versions": self._versions,
        }
        self._write(BUILD, json.dumps({**facts, "recipe": dict(recipe)}, indent=2) + "\n")
        for name in (FAILED, EVENTS):
            self._write(name, "")
        for name in (REPORT, PAGE, QUESTIONS):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        return RunEvents(lambda lines: self._write(EVENTS, lines, mode="a"), about=facts)

    def write_questions(self, questions: Iterable[Question]) -> None:
        """Write which question of a benchmark asks about which video."""
        try:
            write_questions(questions, self.folder)
        except OSError as exc:
            self._tell(exc)

    def note(self, failure: UnitFailure) -> None:
        """Add one dead letter, at once: a driver that is killed leaves those that it knew."""
        letter = {**failure_to_json(failure), "recipe": failure.recipe, "versions": self._versions}
        self._write(FAILED, json.dumps(letter) + "\n", mode="a")

    def end(self, report: BuildReport) -> None:
        """Write the report."""
        self._write(REPORT, json.dumps(report.to_json(), indent=2) + "\n")

    def close(self) -> None:
        """Let other builds write there. Does nothing the second time."""
        if self._lock is not None:
            self._lock.close()

    def _write(self, name: str, text: str, *, mode: str = "w") -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / name, mode, encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as exc:
            self._tell(exc)

    def _tell(self, exc: OSError) -> None:
        if not self._is_told:
            print(f"the report could not be written to {self.folder}: {exc}", file=sys.stderr)
        self._is_told = True


def _plain(value: object) -> object:
    if isinstance(value, Path | UrlPath):
        return str(absolute(value))
    return value


def _versions() -> dict[str, str]:
    libraries = {name: version_of(name) for name in _LIBRARIES}
    present = {name: version for name, version in libraries.items() if version != NOT_INSTALLED}
    return {"vlm-cache": VERSION, "python": platform.python_version()} | present


def _forget_oldest(runs: Path) -> None:
    try:
        made_here = [path for path in runs.iterdir() if re.fullmatch(r"[0-9a-f]{32}", path.name)]
        by_age = sorted((_written_s(path), path) for path in made_here)
    except OSError:
        return  # none yet, or another build forgets them right now
    for written_s, path in by_age[: max(0, len(by_age) - RUNS_KEPT + 1)]:
        if (path / REPORT).exists() or written_s < time.time() - _AT_WORK_S:
            shutil.rmtree(path, ignore_errors=True)


def _written_s(folder: Path) -> float:
    # What is appended to a file leaves its folder's time as it was.
    return max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
