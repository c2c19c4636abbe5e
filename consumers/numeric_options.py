"""Options that are numbers, refused by their names where they are not."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any


def require_whole_numbers(**options: Any) -> None:
    """Refuse an option that is no integer, of Python, numpy or torch: 2.5 tokens would count as 2 here and 3 there.

    Raises:
        ValueError: it is named.
    """
    for name, given in options.items():
        try:
            operator.index(given)
        except TypeError as exc:
            raise ValueError(f"{name} must be a whole number, got {given!r}") from exc


def require_numbers(**options: Any) -> None:
    """Refuse an option that is no real number which goes with floats, as text, None and decimals are.

    Raises:
        ValueError: it is named.
    """
    for name, given in options.items():
        if not isinstance(given, Real):
            raise ValueError(f"{name} must be a number, got {given!r}")
