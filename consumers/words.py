"""Options that are words: one of a few, or several in a list."""

from __future__ import annotations

import os
from typing import Any, get_args


def require_one_of(words: Any, **options: str) -> None:
    """Refuse an option that is none of a `Literal`'s words: mistyped, it would silently count as one of them.

    Raises:
        ValueError: it is named, with the words.
    """
    for name, given in options.items():
        if given not in get_args(words):
            raise ValueError(f"{name} is {given!r}; give {' or '.join(map(repr, get_args(words)))}")


def require_lists(**options: Any) -> None:
    """Refuse a bare string or path where several are expected: each of its letters would count as one.

    Raises:
        TypeError: it is named.
    """
    for name, given in options.items():
        if isinstance(given, (str, os.PathLike)):
            raise TypeError(f"{name} is {str(given)!r}; give a list: [{str(given)!r}]")
