"""The files in the folder of one build's run: their names, and how dead letters and the report are read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import BuildRefused

BUILD, FAILED, EVENTS, REPORT = "build.json", "failed.jsonl", "run.jsonl", "report.json"
PAGE = "report.html"  # drawn when somebody asks


class FailedRun(NamedTuple):
    """What `retry-failed` takes from a run's folder."""

    folder: Path
    arguments: dict[str, Any]  # of `build`
    recipe: str  # fingerprint of what all units share
    recipes: dict[str, str]  # of each failed unit by key; "" for one that the source itself called impossible


def read_failed(path: Path) -> FailedRun:
    """Read the dead letters of a run: `path` is its folder, or the `failed.jsonl` in it.

    Raises:
        BuildRefused: these are no dead letters, or `build.json` is not beside them.
    """
    letters = path / FAILED if path.is_dir() else path
    try:
        asked = json.loads((letters.parent / BUILD).read_text(encoding="utf-8"))
        # JSON may hold other ends of lines, such as U+2028, within its texts.
        lines = letters.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        recipes = {str(letter["key"]): str(letter["recipe"]) for letter in map(json.loads, filter(None, lines))}
        return FailedRun(letters.parent, dict(asked["arguments"]), str(asked["recipe_fingerprint"]), recipes)
    except OSError as exc:
        raise BuildRefused(f"{path} holds no run of a build: {exc}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BuildRefused(f"{path} holds no dead letters that can be read ({type(exc).__name__}: {exc})") from exc


def dead_letters(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the dead letters that can be read, for who only looks at them; none if there is no such file."""
    try:
        with open(folder / FAILED, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if isinstance(letter := _object(line), dict):
                    yield letter
    except OSError:
        return


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if it is not there or cannot be read."""
    try:
        return _object(path.read_text(encoding="utf-8", errors="surrogateescape")) or {}
    except OSError:
        return {}


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
