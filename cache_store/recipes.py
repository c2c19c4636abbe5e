"""Recipes as data: one canonical text, one fingerprint, and their differences in words."""

from __future__ import annotations

import functools
import hashlib
import json
import marshal
from collections.abc import Mapping, Sequence
from typing import Any


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no spaces, ASCII.

    Raises:
        TypeError: a value that JSON does not know, or a mapping whose keys are not all strings.
        ValueError: NaN or infinity, which have no JSON and equal nothing.
    """
    try:
        # Recipes come back at every put, and their content is walked once; 2 is the version without references.
        return _canonical_json_of(marshal.dumps(value, 2))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        # No plain dicts and lists, no JSON, or numpy's numbers, which come back as bytes: the slow way does it, or says
        # why not.
        return _canonical_json(value)


@functools.lru_cache(maxsize=512)
def _canonical_json_of(marshalled: bytes) -> str:
    return _canonical_json(marshal.loads(marshalled))


def _canonical_json(value: object) -> str:
    _check_keys(value, "recipe")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def _check_keys(value: object, where: str) -> None:
    # json.dumps turns 1 and "1" into the same key: two recipes would share one fingerprint.
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; only strings can be keys")
            _check_keys(inner, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for position, inner in enumerate(value):
            _check_keys(inner, f"{where}[{position}]")


def recipe_fingerprint(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of the recipe's canonical JSON; independent of key order and of the process.

    Raises:
        TypeError, ValueError: as `canonical_json`.
    """
    return _sha256(canonical_json(recipe))


@functools.lru_cache(maxsize=512)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def differences(found: object, wanted: object) -> list[str]:
    """Where two recipes part, one line per place: `"path: found x, wanted y"`, sorted by path."""
    lines: list[str] = []
    _collect(found, wanted, "", lines)
    return lines


_ABSENT = object()


def _collect(found: object, wanted: object, path: str, lines: list[str]) -> None:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            inner = f"{path}.{key}" if path else str(key)
            _collect(found.get(key, _ABSENT), wanted.get(key, _ABSENT), inner, lines)
    elif _text(found) != _text(wanted):
        lines.append(f"{path or 'recipe'}: found {_text(found)}, wanted {_text(wanted)}")


def _text(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, sort_keys=True)
