"""Which data sets a person means: by name, by one of its recipes, or by a shell pattern."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from cache_store import naming
from cache_store.errors import InvalidKey

_FINGERPRINT8 = re.compile(r"[0-9a-f]{8}")


class DatasetPatterns:
    """Data sets by name, `<name>@<fingerprint8>` or shell pattern (`recv_all_*`); any of them may match.

    A plain name means all recipes of the data set; with `@` and the first 8 hex digits of a recipe's
    fingerprint only the folder of that second recipe. `*`, `?` and `[...]` are patterns, but a data set whose
    name has these characters is also matched by its own name.

    Raises:
        InvalidKey: one of them can match no data set.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: set[str] = set()
        self._shell: list[tuple[str, str | None]] = []  # (pattern, fingerprint8)
        for pattern in patterns:
            check_pattern(pattern)
            self._exact.add(pattern)
            name, _, fingerprint8 = pattern.partition("@")
            if any(character in name for character in "*?["):
                self._shell.append((name, fingerprint8 or None))

    def matches(self, dataset: str, fingerprint8: str | None) -> bool:
        """Whether a data set, or the folder of its second recipe `fingerprint8`, is meant."""
        if dataset in self._exact or (fingerprint8 is not None and f"{dataset}@{fingerprint8}" in self._exact):
            return True
        return any(
            wanted in (None, fingerprint8) and fnmatch.fnmatchcase(dataset, pattern) for pattern, wanted in self._shell
        )


def named(datasets: Iterable[str]) -> tuple[str, ...]:
    """Data sets as a caller gives them.

    Raises:
        TypeError: a bare string, of which each letter would be one.
    """
    if isinstance(datasets, str):
        raise TypeError(f"datasets is the string {datasets!r}; give a list of names: [{datasets!r}]")
    return tuple(datasets)


def check_pattern(pattern: object) -> None:
    """Refuse what can match no data set.

    Raises:
        InvalidKey: says what is wrong with it.
    """
    if not isinstance(pattern, str):
        raise InvalidKey("is not a string", field="dataset", value=pattern)
    name, separator, fingerprint8 = pattern.partition("@")
    naming.check_dataset(name)
    if separator and not _FINGERPRINT8.fullmatch(fingerprint8):
        raise InvalidKey("needs 8 lower-case hex digits after '@'", field="dataset", value=pattern)
