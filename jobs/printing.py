"""What the commands over a store share: opening one, consoles, tables, JSON, and names made safe for a terminal."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from cache_store import FeatureStore, is_root
from pipeline.errors import BuildRefused

# Where nobody looks at a screen, nothing has to be folded at 80 columns.
_WIDTH_IN_FILES = 160


def open_store(root: Path | str) -> FeatureStore:
    """Open a store that is there: looking at one must not make one.

    Raises:
        BuildRefused: no such folder.
        StoreFormatError: no such bucket.
    """
    if not is_root(root):
        raise BuildRefused(f"{root} is no folder; --store names the root of a feature store")
    return FeatureStore(root)


def results() -> Console:
    """Return the console of results: stdout."""
    return _console(sys.stdout)


def notes() -> Console:
    """Return the console of progress and remarks: stderr."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    console = Console(file=file, highlight=False)
    if not console.is_terminal and console.width == 80:
        console.width = _WIDTH_IN_FILES
    return console


def print_json(value: Any) -> None:
    """Print one JSON object on a line of its own; see `strict_json`."""
    print(strict_json(value))


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that every parser reads: a float for which JSON has no word, NaN or infinite, is null."""
    return json.dumps(_in_words_of_json(value), indent=indent, allow_nan=False)


def _in_words_of_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_words_of_json(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_words_of_json(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(*columns: tuple[str, str], title: str | None = None) -> Table:
    """Return an empty table; a column is its heading and "left", "right" or "name", which is folded before others."""
    made = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading, side in columns:
        justify: Literal["left", "right"] = "right" if side == "right" else "left"
        made.add_column(heading, justify=justify, overflow="fold", no_wrap=side != "name")
    return made


def printable(text: str) -> str:
    r"""Return a name of unknown origin with everything escaped that a terminal would obey or refuse: `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
