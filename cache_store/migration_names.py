"""Reads the list that names a hash-named cache, line by line: a line that cannot be understood spoils no other."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from cache_store import naming
from cache_store.errors import CacheStoreError, InvalidKey
from cache_store.keys import StepKey

HASH_NAME = re.compile(r"[0-9a-f]{8,64}")
_COLUMNS = ("hash", "dataset", "vlm_idx")
_INDEX = re.compile(r"[0-9]{1,20}")
_NAME_CHARACTERS = 255  # of a file; parsing a longer one could meet numbers that int() refuses
_REASON_CHARACTERS = 300
_JSON_GAP = re.compile(r"[\s,:]*")


class NamesFileError(CacheStoreError, ValueError):
    """A list of names that cannot be understood at all; `line` says where."""

    line: str

    def __init__(self, path: Path, line: str, problem: str) -> None:
        super().__init__(f"{path}: {line}: {problem}", path=str(path), line=line)


class BadLine(NamedTuple):
    """A line of the list, counted from 1, that names nothing."""

    line: int
    reason: str


class NamesList(NamedTuple):
    """What a list says: the steps by hash (the files' stems), and the lines that could not be used, in their order."""

    names: dict[str, StepKey]
    bad_lines: list[BadLine]


class _Named(NamedTuple):
    line: int
    stem: str
    key: StepKey


def read_names(path: Path) -> NamesList:
    """The keys of a hash-named cache. A hash that two lines name differently is named by neither.

    Takes JSON, `{hash: [dataset, vlm_idx]}`, `{hash: "<dataset>_vlm<idx>"}` or either the other way round, and CSV or
    TSV with a header of the columns hash, dataset, vlm_idx and perhaps prompt_hash, one file a line.

    Raises:
        NamesFileError: no JSON object, or no such header.
        OSError: as `open`.
    """
    # Bytes that are no UTF-8 spoil their own line: half a surrogate pair is refused in any name.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    found = list(_of_json(path, text) if text.lstrip()[:1] in ("{", "[") else _of_table(path, text))
    bad_lines = [one for one in found if isinstance(one, BadLine)]
    by_stem: dict[str, list[_Named]] = {}
    for one in found:
        if isinstance(one, _Named):
            by_stem.setdefault(one.stem, []).append(one)
    names: dict[str, StepKey] = {}
    for stem, told in by_stem.items():
        if all(one.key == told[0].key for one in told):
            names[stem] = told[0].key
        else:
            shown = ", ".join(f"{_shown(one.key)} in line {one.line}" for one in told)
            bad_lines += [_bad(one.line, f"{stem} has more than one name: {shown}") for one in told]
    return NamesList(names, sorted(bad_lines))


def _of_json(path: Path, text: str) -> Iterator[_Named | BadLine]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as exc:
        raise NamesFileError(path, f"line {exc.lineno}", f"is no JSON: {exc.msg}") from exc
    except (ValueError, RecursionError) as exc:
        raise NamesFileError(path, "the whole file", f"is no JSON: {exc}") from exc
    if not isinstance(whole, dict):
        raise NamesFileError(path, "the whole file", "is no JSON object")
    # Once more by hand: json tells neither the lines nor that a name came twice.
    decode = json.JSONDecoder().raw_decode
    line, counted, at = 1, 0, text.index("{") + 1
    while text[start := _end_of_gap(text, at)] != "}":
        line, counted = line + text.count("\n", counted, start), start
        left, at = decode(text, start)
        right, at = decode(text, _end_of_gap(text, at))
        if _step_of(left) is not None:
            left, right = right, left
        key = _step_of(right)
        if key is None:
            yield _bad(line, f"{right!r} is no [dataset, vlm_idx] and no '<dataset>_vlm<idx>'")
        else:
            yield _checked(line, left, key)


def _end_of_gap(text: str, at: int) -> int:
    gap = _JSON_GAP.match(text, at)
    return gap.end() if gap else at


def _step_of(target: object) -> StepKey | None:
    if isinstance(target, str) and len(target) <= _NAME_CHARACTERS:
        parsed = naming.parse(f"{target.removesuffix(naming.SUFFIX)}{naming.SUFFIX}")
        return parsed.key if parsed is not None else None
    if isinstance(target, list) and len(target) in (2, 3) and isinstance(target[0], str):
        return StepKey(*target)
    return None


def _of_table(path: Path, text: str) -> Iterator[_Named | BadLine]:
    first, *lines = text.split("\n")
    delimiter = "\t" if "\t" in first else ","
    header = [column.strip('" ') for column in first.split(delimiter)]
    if not set(_COLUMNS) <= set(header):
        raise NamesFileError(path, "line 1", f"needs the columns {', '.join(_COLUMNS)}, or JSON")
    for number, line in enumerate(lines, start=2):
        if line.strip():
            yield _of_row(number, line, header, delimiter)


def _of_row(number: int, line: str, header: list[str], delimiter: str) -> _Named | BadLine:
    try:
        # Each line by itself: a quote that is never closed would swallow all that follow.
        (row,) = csv.reader([line], delimiter=delimiter, strict=True)
    except csv.Error as exc:
        return _bad(number, str(exc))
    if len(row) > len(header):
        return _bad(number, f"has {len(row)} fields, the header {len(header)}")
    fields = dict(zip_longest(header, row))
    index = fields["vlm_idx"] or ""
    if not _INDEX.fullmatch(index):
        return _bad(number, f"vlm_idx {index!r} is no whole number")
    return _checked(number, fields["hash"], StepKey(fields["dataset"], int(index), fields.get("prompt_hash") or None))


def _checked(line: int, digest: object, key: StepKey) -> _Named | BadLine:
    stem = digest.removesuffix(naming.SUFFIX) if isinstance(digest, str) else ""
    if not HASH_NAME.fullmatch(stem):
        return _bad(line, f"{digest!r} is no hash of 8 to 64 lower-case hex digits")
    try:
        shown = _shown(key)
    except InvalidKey as exc:
        return _bad(line, str(exc))
    if not _INDEX.fullmatch(shown.rpartition("_vlm")[2]):
        return _bad(line, f"vlm_idx {key.vlm_idx} has more than 20 digits")
    return _Named(line, stem, key)


def _shown(key: StepKey) -> str:
    return naming.relative_path(key).removesuffix(naming.SUFFIX)


def _bad(line: int, reason: str) -> BadLine:
    # A line may be as long as the file; what is wrong with it stands at the reason's end.
    half = _REASON_CHARACTERS // 2
    return BadLine(line, reason if len(reason) <= 2 * half else f"{reason[:half]}...{reason[-half:]}")
