"""Options that are one of a few words."""

from __future__ import annotations

from typing import Any, get_args


def require_one_of(words: Any, **options: str) -> None:
    """Refuse an option that is none of a `Literal`'s words: mistyped, it would silently count as one of them.

    Raises:
        ValueError: it is named, with the words.
    """
    for name, given in options.items():
        if given not in get_args(words):
            raise ValueError(f"{name} is {given!r}; give {' or '.join(map(repr, get_args(words)))}")
