"""Brings caches of earlier scripts under today's names: copied, checked, never recomputed and never deleted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cache_store import archive, naming
from cache_store.codec import decode, same_feature
from cache_store.dataset_names import canonical_dataset_name
from cache_store.errors import CacheStoreError, DamagedFeature, EntryExists, InvalidKey, StoreReadError
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.store import FeatureStore

_HASH_NAME = re.compile(r"[0-9a-f]{8,64}")
_COLUMNS = ("hash", "dataset", "vlm_idx")


class NamesFileError(CacheStoreError, ValueError):
    """The list that names a hash-named cache cannot be understood; `line` says where."""

    line: str

    def __init__(self, path: Path, line: str, problem: str) -> None:
        super().__init__(f"{path}: {line}: {problem}", path=str(path), line=line)


class Move(NamedTuple):
    """A feature file and the key that it is to have."""

    source: Path
    key: FeatureKey
    is_renamed_only: bool  # False: the content names its data set and is written anew


@dataclass(frozen=True)
class Moved:
    """What became of one file. `outcome` is copied, there, conflict, damaged or skipped."""

    source: str
    target: str | None  # relative to the store
    outcome: str
    reason: str | None
    bytes: int


def read_names(path: Path) -> dict[str, StepKey]:
    """The keys of a hash-named cache by hash (the files' stems).

    Takes JSON, `{hash: [dataset, vlm_idx]}`, `{hash: "<dataset>_vlm<idx>"}` or either the other way round, and CSV or
    TSV with a header of the columns hash, dataset, vlm_idx and perhaps prompt_hash.

    Raises:
        NamesFileError: names the first line that cannot be understood.
        OSError: as `open`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise NamesFileError(path, f"byte {exc.start}", "is not UTF-8") from exc
    try:
        fields = json.loads(text)
    except ValueError:
        return _names_of_table(path, text)
    if not isinstance(fields, dict):
        raise NamesFileError(path, "the whole file", "is no JSON object")
    names: dict[str, StepKey] = {}
    for left, right in fields.items():
        digest, target = (right, left) if _step_of(left) is not None else (left, right)
        key = _step_of(target)
        stem = str(digest).removesuffix(naming.SUFFIX)
        if key is None or not _HASH_NAME.fullmatch(stem):
            raise NamesFileError(path, repr(left), "is neither hash -> step nor step -> hash")
        if names.setdefault(stem, key) != key:
            raise NamesFileError(path, repr(left), f"names {stem} a second time, otherwise")
    return names


def _names_of_table(path: Path, text: str) -> dict[str, StepKey]:
    first = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first else ",")
    if not set(_COLUMNS) <= set(rows.fieldnames or ()):
        raise NamesFileError(path, "line 1", f"needs the columns {', '.join(_COLUMNS)}, or JSON")
    names: dict[str, StepKey] = {}
    for number, row in enumerate(rows, start=2):
        stem, index = (row["hash"] or "").removesuffix(naming.SUFFIX), row["vlm_idx"] or ""
        if not _HASH_NAME.fullmatch(stem) or not index.isdecimal():
            raise NamesFileError(path, f"line {number}", f"hash {row['hash']!r} or vlm_idx {index!r} is none")
        key = StepKey(row["dataset"], int(index), row.get("prompt_hash") or None)
        if names.setdefault(stem, key) != key:
            raise NamesFileError(path, f"line {number}", f"names {stem} a second time, otherwise")
    return names


def _step_of(target: object) -> StepKey | None:
    if isinstance(target, str):
        parsed = naming.parse(f"{target.removesuffix(naming.SUFFIX)}{naming.SUFFIX}")
        return parsed.key if parsed is not None else None
    if isinstance(target, list) and len(target) in (2, 3) and isinstance(target[1], int):
        return StepKey(*target)
    return None


def moves_of_names(folder: Path, names: Mapping[str, StepKey]) -> Iterator[Move]:
    """The hash-named files of a folder that the list names; files that it does not name are left alone."""
    for stem, key in sorted(names.items()):
        source = folder / f"{stem}{naming.SUFFIX}"
        if source.is_file() and not source.is_symlink():
            yield Move(source, key, True)


def moves_to_flat(folder: Path, *, prompt_hash: str | None = None) -> Iterator[Move]:
    """From `<prompt_hash>/` folders to the flat form; with `prompt_hash` of that folder only."""
    for source, key in _steps(folder):
        if key.prompt_hash is not None and prompt_hash in (None, key.prompt_hash):
            yield Move(source, StepKey(key.dataset, key.vlm_idx), True)


def moves_to_tree(folder: Path, *, prompt_hash: str) -> Iterator[Move]:
    """From the flat form into the folder of one instruction."""
    for source, key in _steps(folder):
        if key.prompt_hash is None:
            yield Move(source, StepKey(key.dataset, key.vlm_idx, prompt_hash), True)


def _steps(folder: Path) -> Iterator[tuple[Path, StepKey]]:
    for source in sorted((*folder.glob("*.pt"), *folder.glob("*/*.pt"))):
        parsed = naming.parse(source.relative_to(folder).as_posix())
        is_linked = source.is_symlink() or (source.parent != folder and source.parent.is_symlink())
        if parsed is not None and parsed.key is not None and not is_linked:
            yield source, parsed.key


def moves_of_aliases(folder: Path) -> Iterator[Move | Moved]:
    """Video features in folders that a harness named, to the canonical name; files that do not tell who they are stay.

    The file's name must be the MD5 of what the file says of itself under the folder's name.
    """
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        canonical = canonical_dataset_name(inner.name)
        if canonical == inner.name:
            continue
        for source in sorted(inner.glob("*.pt")):
            if source.is_symlink():
                yield Moved(str(source), None, "skipped", "symbolic links are not followed", 0)
                continue
            try:
                content = decode(source)
                fields = content if isinstance(content, dict) else {}
                key = VideoKey(inner.name, fields["video_id"], fields["nframe"], fields["model_signature"])
                expected = naming.relative_path(key)
            except (DamagedFeature, FileNotFoundError, StoreReadError) as exc:
                yield Moved(str(source), None, "damaged", str(exc), 0)
                continue
            except (KeyError, TypeError, InvalidKey):
                yield Moved(str(source), None, "skipped", "it does not say which video it is", 0)
                continue
            if expected != f"{inner.name}/{source.name}":
                yield Moved(str(source), None, "skipped", f"its name is not the {expected} that its content says", 0)
                continue
            yield Move(source, VideoKey(canonical, key.video_id, key.nframe, key.model_signature), False)


def migrate(
    store: FeatureStore, moves: Iterable[Move | Moved], *, recipe: Mapping[str, Any] | None, dry_run: bool
) -> Iterator[Moved]:
    """Copy each file to its new name in the store; what is there already and differs is named, not touched.

    Tensors stay the very same bits. A file that is only renamed keeps all its bytes, unless it has no recipe and
    `recipe` gives it one. Two different features for one name are both left. Nothing is evicted meanwhile.

    Raises:
        StoreFull, StoreWriteError: the store cannot take the next file.
    """
    moves = list(moves)
    contested = _contested(moves)
    # Room made by eviction would come from sources not yet copied, or from copies whose sources a person then deletes.
    with nullcontext() if dry_run else store.reading(datasets=["*"]):
        for move in moves:
            if isinstance(move, Moved):
                yield move
            elif move.key in contested:
                target = naming.relative_path(move.key)
                yield Moved(str(move.source), target, "conflict", "another old file, which differs, has this key", 0)
            else:
                yield _moved(store, move, recipe, dry_run=dry_run)


def _contested(moves: Iterable[Move | Moved]) -> set[FeatureKey]:
    """The keys that different features are to have; damaged files have no say."""
    sources: dict[FeatureKey, list[Path]] = {}
    for move in moves:
        if isinstance(move, Move):
            sources.setdefault(move.key, []).append(move.source)
    return {key for key, rivals in sources.items() if len(rivals) > 1 and _differ(rivals)}


def _differ(rivals: list[Path]) -> bool:
    sound = [path for path in rivals if _is_sound(path)]
    first = decode(sound[0]) if sound else None
    for path in sound[1:]:
        other = decode(path)
        if isinstance(first, dict) and isinstance(other, dict) and "dataset" in other:
            other = {**other, "dataset": first.get("dataset")}  # two aliases of one benchmark
        if not same_feature(first, other):
            return True
    return False


def _is_sound(path: Path) -> bool:
    try:
        return archive.check(path) is None
    except (FileNotFoundError, StoreReadError):
        return False


def _moved(store: FeatureStore, move: Move, recipe: Mapping[str, Any] | None, *, dry_run: bool) -> Moved:
    try:
        target = store.path_of(move.key)
        size = move.source.stat().st_size
        problem = archive.check(move.source)
    except (InvalidKey, FileNotFoundError) as exc:
        return Moved(str(move.source), None, "skipped", str(exc), 0)
    except StoreReadError as exc:
        return Moved(str(move.source), None, "damaged", f"cannot be read: {exc.reason}", 0)
    shown = target.relative_to(store.root).as_posix()
    if problem is not None:
        return Moved(str(move.source), shown, "damaged", problem, 0)
    value = decode(move.source)
    if isinstance(move.key, VideoKey) and isinstance(value, dict):
        value = {**value, "dataset": move.key.dataset}
    if _is_no_copy(move.source, target):
        return Moved(str(move.source), shown, "conflict", "a link in the store is in the place of the copy", 0)
    if target.exists():  # not `contains`, which would find the alias's own file
        is_same = _holds(target, value)
        reason = None if is_same else "another feature has this name already"
        return Moved(str(move.source), shown, "there" if is_same else "conflict", reason, 0)
    if dry_run:
        return Moved(str(move.source), shown, "copied", None, size)
    record = archive.read_record(move.source)
    try:
        if move.is_renamed_only and (record is not None or recipe is None):
            store.adopt(move.source, move.key)
        else:
            made = record.recipe if record is not None else recipe
            provenance = record.provenance if record is not None else None
            store.put(move.key, value, recipe=made, provenance=provenance, create_only=True)
    except EntryExists:
        return Moved(str(move.source), shown, "conflict", "another process wrote this name this moment", 0)
    if not _holds(target, value):
        return Moved(str(move.source), shown, "conflict", "the copy does not read back as the same feature", 0)
    return Moved(str(move.source), shown, "copied", None, size)


def _is_no_copy(source: Path, target: Path) -> bool:
    # Deleting the source would then delete the feature.
    if target.is_symlink() or target.parent.is_symlink():
        return True
    return target.exists() and os.path.samefile(source, target)


def _holds(path: Path, value: object) -> bool:
    try:
        return same_feature(decode(path), value)
    except (DamagedFeature, FileNotFoundError):
        return False


def instruction_hash(instruction: str | None, prompt_hash: str | None) -> str | None:
    """The prompt hash that a person means by an instruction or by the hash itself."""
    return hashlib.sha256(instruction.encode()).hexdigest()[:8] if instruction is not None else prompt_hash
