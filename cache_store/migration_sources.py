"""Finds the files of old caches and the keys that they are to have; what cannot be moved is named with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cache_store import naming
from cache_store.archive import Record, read_record
from cache_store.codec import decode
from cache_store.dataset_names import canonical_dataset_name
from cache_store.errors import DamagedFeature, InvalidKey, StoreReadError
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.migration_names import HASH_NAME
from cache_store.naming import ParsedName


class Move(NamedTuple):
    """A feature file and the key that it is to have. Steps are renamed; a video names its data set and is rewritten."""

    source: Path
    key: FeatureKey
    second_recipe: str | None = None  # of a file from `<alias>@<fingerprint8>`: those 8 hex digits


@dataclass(frozen=True)
class Moved:
    """What became of one file. `outcome` is copied, there, conflict, damaged or skipped."""

    source: str
    target: str | None  # relative to the store
    outcome: str
    reason: str | None
    bytes: int


def left_alone(source: Path, outcome: str, reason: str, *, target: str | None = None) -> Moved:
    """What is said of a file that was not copied."""
    return Moved(str(source), target, outcome, reason, 0)


def moves_of_names(folder: Path, names: Mapping[str, StepKey]) -> Iterator[Move]:
    """The hash-named files of a folder that the list names; files that it does not name are left alone."""
    for stem, key in sorted(names.items()):
        source = folder / f"{stem}{naming.SUFFIX}"
        if source.is_file() and not source.is_symlink():
            yield Move(source, key)


def moves_to_flat(folder: Path, *, prompt_hash: str | None = None) -> Iterator[Move | Moved]:
    """From `<prompt_hash>/` folders to the flat form; with `prompt_hash` of that folder only.

    Hash-named files whose own record names their step come along.
    """
    for found in _steps(folder):
        if isinstance(found, Moved):
            yield found
            continue
        source, key = found
        flat = replace(key, prompt_hash=None)
        if source != folder / naming.relative_path(flat) and prompt_hash in (None, key.prompt_hash):
            yield Move(source, flat)


def moves_to_tree(folder: Path, *, prompt_hash: str | None = None) -> Iterator[Move | Moved]:
    """From the flat form into the folder of the instruction that a file's own record tells, else of `prompt_hash`.

    A file whose record tells another instruction than `prompt_hash`, or that tells none where none is given, stays.
    """
    for found in _steps(folder):
        if isinstance(found, Moved):
            yield found
            continue
        source, key = found
        if source.parent != folder:
            continue
        try:
            told = key.prompt_hash or _told_prompt_hash(read_record(source))
        except (DamagedFeature, FileNotFoundError, StoreReadError) as exc:
            yield left_alone(source, "damaged", str(exc))
            continue
        if told is None and prompt_hash is None:
            reason = "it does not say its instruction; --instruction TEXT or --prompt-hash HASH does"
            yield left_alone(source, "skipped", reason)
        elif None not in (told, prompt_hash) and told != prompt_hash:
            yield left_alone(source, "skipped", f"its record says prompt hash {told}, not {prompt_hash}")
        else:
            yield Move(source, replace(key, prompt_hash=told or prompt_hash))


def _told_prompt_hash(record: Record | None) -> str | None:
    """The prompt hash of a step by its record: of the key that it was put under, or of its recipe's instruction."""
    if record is None:
        return None
    key: object = record.key
    if isinstance(key, dict) and key.get("prompt_hash") is not None:
        return str(key["prompt_hash"])
    prompt = record.recipe.get("prompt") if isinstance(record.recipe, dict) else None
    digest = prompt.get("instruction_sha256") if isinstance(prompt, dict) else None
    return digest[:8] if isinstance(digest, str) else None


def _steps(folder: Path) -> Iterator[tuple[Path, StepKey] | Moved]:
    """Step files of the flat form and of `<prompt_hash>/` folders, and hash-named ones whose record names the step."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    for place in (folder, *sorted(inner)):
        for source in _files(place):
            if isinstance(source, Moved):
                yield source
                continue
            parsed = naming.parse(source.relative_to(folder).as_posix())
            key = parsed.key if parsed is not None else None
            if parsed is None and place == folder and HASH_NAME.fullmatch(source.stem):
                key = _recorded_step(source)
            if key is not None and not source.is_symlink():
                yield source, key


def _recorded_step(source: Path) -> StepKey | None:
    """The step that a file's record names; None for a file that does not say, which may be anything."""
    try:
        record = read_record(source)
        fields = record.key if record is not None and record.key is not None else {}
        key = StepKey(fields["dataset"], fields["vlm_idx"], fields["prompt_hash"])
        naming.relative_path(key)
    except (DamagedFeature, FileNotFoundError, StoreReadError, KeyError, TypeError, InvalidKey):
        return None
    return key


def _files(folder: Path) -> Iterator[Path | Moved]:
    """The `.pt` files of a folder by name; a folder that may not be read is named, not passed over."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(naming.SUFFIX))
        os.stat(f"{folder}/.")  # may its files be opened? Listing them takes another permission.
    except OSError as exc:
        yield left_alone(folder, "damaged", f"the folder cannot be read: {exc.strerror or exc}")
        return
    yield from (folder / name for name in names)


def moves_of_aliases(folder: Path) -> Iterator[Move | Moved]:
    """Video features in folders that a harness named, to the canonical name; files that do not tell who they are stay.

    `<alias>@<fingerprint8>`, where a second recipe lies, too. The file's name must be the MD5 of what the file says of
    itself, in its content or in its record, under the folder's name.
    """
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        told = naming.parse_video_folder(inner.name)
        if told is None or canonical_dataset_name(told.dataset) == told.dataset:
            continue
        for source in _files(inner):
            yield source if isinstance(source, Moved) else _move_of_alias(source, told)


def _move_of_alias(source: Path, told: ParsedName) -> Move | Moved:
    if source.is_symlink():
        return left_alone(source, "skipped", "symbolic links are not followed")
    try:
        key = _video_in(source, told.dataset)
        expected = naming.relative_path(key).rpartition("/")[2]
    except (DamagedFeature, FileNotFoundError, StoreReadError) as exc:
        return left_alone(source, "damaged", str(exc))
    except (KeyError, TypeError, InvalidKey):
        return left_alone(source, "skipped", "it does not say which video it is")
    if expected != source.name:
        return left_alone(source, "skipped", f"its name is not the {expected} that its content says")
    return Move(source, replace(key, dataset=canonical_dataset_name(told.dataset)), told.fingerprint8)


def _video_in(source: Path, dataset: str) -> VideoKey:
    """The key that a file gives itself in its content, or, as a bare tensor of ours does, in its record.

    Raises:
        KeyError, TypeError: it gives none.
        DamagedFeature, FileNotFoundError, StoreReadError: as `decode`.
    """
    content = decode(source)
    fields: object = content
    if not isinstance(content, dict) or "video_id" not in content:
        record = read_record(source)
        fields = record.key if record is not None else None
    if not isinstance(fields, dict):
        raise TypeError("neither a dict nor a file of ours")
    return VideoKey(dataset, fields["video_id"], fields["nframe"], fields["model_signature"])
