"""The folder of one build's run: what was asked for, a dead letter for each failed unit, and the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from cache_store import recipe_fingerprint
from cache_store.naming import RUNS
from pipeline.errors import BuildRefused
from pipeline.failures import UnitFailure
from pipeline.lanes import BuildReport, failure_to_json
from pipeline.sources import UrlPath, absolute
from pipeline.version import VERSION

BUILD, FAILED, REPORT = "build.json", "failed.jsonl", "report.json"
RUNS_KEPT = 100  # in a store; a folder that --report names is never removed
_NOT_ASKED_AGAIN = ("command", "json", "report")
_LIBRARIES = ("torch", "transformers", "ray", "numpy", "pillow", "av", "decord")


class FailedRun(NamedTuple):
    """What `retry-failed` takes from a run's folder."""

    arguments: dict[str, Any]  # of `build`
    recipe: str  # fingerprint of what all units share
    recipes: dict[str, str]  # of each failed unit by key; "" for one that the source itself called impossible


class RunFolder:
    """Writes the folder. That it cannot be written is told once and stops nothing: hours went into the features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = _versions()
        self._is_told = False

    @classmethod
    def in_store(cls, store_root: Path, run: str) -> RunFolder:
        """Return the folder of run `run` in a store, and forget its oldest runs."""
        runs = store_root / RUNS
        _forget_oldest(runs)
        return cls(runs / run)

    def begin(self, args: argparse.Namespace, recipe: Mapping[str, Any]) -> None:
        """Write down what was asked for, `recipe` being what all units share; failures of an earlier run go."""
        asked = {name: _plain(value) for name, value in vars(args).items() if name not in _NOT_ASKED_AGAIN}
        if os.path.isdir(args.model):
            asked["model"] = os.path.abspath(args.model)  # as all paths: a retry may start elsewhere
        whole = {
            "arguments": asked,
            "recipe": dict(recipe),
            "recipe_fingerprint": recipe_fingerprint(recipe),
            "host": socket.gethostname(),
            "versions": self._versions,
        }
        self._write(BUILD, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        self._write(FAILED, "")

    def note(self, failure: UnitFailure) -> None:
        """Add one dead letter, at once: a driver that is killed leaves those that it knew."""
        letter = {**failure_to_json(failure), "recipe": failure.recipe, "versions": self._versions}
        self._write(FAILED, json.dumps(letter, ensure_ascii=False) + "\n", mode="a")

    def end(self, report: BuildReport) -> None:
        """Write the report."""
        self._write(REPORT, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str, *, mode: str = "w") -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / name, mode, encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as exc:
            if not self._is_told:
                print(f"the report could not be written to {self.folder}: {exc}", file=sys.stderr)
            self._is_told = True


def read_failed(path: Path) -> FailedRun:
    """Read the dead letters of a run: `path` is its folder, or the `failed.jsonl` in it.

    Raises:
        BuildRefused: these are no dead letters, or `build.json` is not beside them.
    """
    letters = path / FAILED if path.is_dir() else path
    try:
        asked = json.loads((letters.parent / BUILD).read_text(encoding="utf-8"))
        lines = letters.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        recipes = {str(letter["key"]): str(letter["recipe"]) for letter in map(json.loads, filter(None, lines))}
        return FailedRun(dict(asked["arguments"]), str(asked["recipe_fingerprint"]), recipes)
    except OSError as exc:
        raise BuildRefused(f"{path} holds no run of a build: {exc}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BuildRefused(f"{path} holds no dead letters that can be read ({type(exc).__name__}: {exc})") from exc


def _plain(value: object) -> object:
    return str(absolute(value)) if isinstance(value, Path | UrlPath) else value


def _versions() -> dict[str, str]:
    found = {"vlm-cache": VERSION, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _forget_oldest(runs: Path) -> None:
    try:
        made_here = [path for path in runs.iterdir() if re.fullmatch(r"[0-9a-f]{32}", path.name)]
        by_age = sorted(made_here, key=lambda path: path.stat().st_mtime)
    except OSError:
        return  # none yet, or another build forgets them right now
    for path in by_age[: max(0, len(by_age) - RUNS_KEPT + 1)]:
        shutil.rmtree(path, ignore_errors=True)
