"""Which recipe owns a video family's plain folder: the first one. Others get a folder of their own.

A family is a data set, a frame count and a tower signature. Files of two recipes would have the same name,
and the plain name must go on meaning one of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cache_store import naming, opening, shards
from cache_store.archive import Record
from cache_store.atomic import create_only
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.keys import FeatureKey, VideoKey


def owner_of(root: Path, key: VideoKey) -> str | None:
    """Fingerprint (64 hex digits) of the recipe that owns the plain folder for this family; None: free.

    Read from the marker, or from the first file of the family when someone removed the marker.
    """
    marked = _marked(root / naming.family_marker(key))
    if marked is not None:
        return marked
    try:
        changed_ns = os.stat(root / key.dataset).st_mtime_ns
    except OSError:
        # No folder: nothing is loose there.
        changed_ns = 0
    packed_in = tuple(shard.id for shard in shards.of(root).view().shards)
    return _first_since(root, replace(key, video_id=""), changed_ns, packed_in)


@lru_cache(maxsize=64)
def _first_since(root: Path, family: VideoKey, changed_ns: int, packed_in: tuple[str, ...]) -> str | None:
    # Looked for once while folder and shards stay as they are: whoever asks for each video of a folder of old files,
    # which tell no recipe, would read all of them each time. A put leaves a marker, which comes first.
    return _first_in_folder(root, family)


def claimed_name(root: Path, key: FeatureKey, fingerprint: str | None, *, is_second: bool = False) -> str:
    """The relative path that a put of this recipe writes; the first recipe of a video family becomes its owner.

    With `is_second` it does not become it, even where there is none yet.

    Raises:
        InvalidKey: the key cannot be a file name.
        StoreWriteError: as `claim`.
    """
    if not isinstance(key, VideoKey) or fingerprint is None:
        return naming.relative_path(key)
    owner = owner_of(root, key) if is_second else claim(root, key, fingerprint)
    return name_for(root, key, fingerprint, is_owner=owner == fingerprint)


def name_for(root: Path, key: VideoKey, fingerprint: str, *, is_owner: bool) -> str:
    """Where a recipe's feature of a key lies or is to lie.

    A recipe that became the owner later, when a person removed the marker, may have it in its own folder already.
    """
    second = naming.relative_path(key, second_recipe=fingerprint)
    return naming.relative_path(key) if is_owner and not opening.is_file(root, second) else second


def claim(root: Path, key: VideoKey, fingerprint: str) -> str:
    """Make `fingerprint` the owner unless there is one; returns the owner, the same for all who race.

    Raises:
        StoreWriteError: the marker cannot be written.
    """
    marker = root / naming.family_marker(key)
    marked = _marked(marker)
    if marked is not None:
        return marked
    owner = _first_in_folder(root, key) or fingerprint
    content = json.dumps({"dataset": key.dataset, "recipe_fingerprint": owner}, sort_keys=True).encode()
    while not create_only(content, marker):
        marked = _marked(marker)
        if marked is not None:
            return marked
        # Unreadable: no owner can be told from it, and it would block the family for ever.
        marker.unlink(missing_ok=True)
    return owner


def release_empty(root: Path, datasets: Iterable[str]) -> None:
    """Forget the owners of those of `datasets` of which no feature is left, a second recipe's neither.

    A second recipe that became the owner would put beside its features, and its readers find those of before.

    For `prune` and `clear`, which a person starts: a writer that claimed a family and has not yet published its first
    file would lose the claim.
    """
    emptied = {dataset.partition("@")[0] for dataset in datasets}
    emptied -= {dataset for dataset in emptied if _features(root, dataset) or _has_second(root, dataset)}
    try:
        markers = sorted((root / naming.RECIPES).iterdir())
    except OSError:
        # Never created: no family has an owner.
        return
    for marker in markers:
        try:
            if json.loads(marker.read_bytes())["dataset"] in emptied:
                marker.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            # Another process tidies too, or the marker is no marker; owner_of copes with both.
            continue


def _marked(marker: Path) -> str | None:
    try:
        return marked_in(marker.read_bytes())
    except OSError:
        return None


def marked_in(content: bytes) -> str | None:
    """The owner that a marker's content names; None where it is damaged: a hint, rebuilt from the features."""
    try:
        fingerprint = json.loads(content)["recipe_fingerprint"]
    except (ValueError, KeyError, TypeError):
        return None
    return fingerprint if isinstance(fingerprint, str) else None


def recorded_in(record: Record | None, key: VideoKey) -> str | None:
    """The recipe that a feature tells of, if it is one of this family."""
    if record is None or record.key is None:
        return None
    is_of_family = (record.key.get("nframe"), record.key.get("model_signature")) == (key.nframe, key.model_signature)
    return record.recipe_fingerprint if is_of_family else None


def _first_in_folder(root: Path, key: VideoKey) -> str | None:
    for name in _features(root, key.dataset):
        try:
            record = opening.read_record(root, f"{key.dataset}/{name}")
        except (FileNotFoundError, DamagedFeature, StoreReadError):
            # Evicted meanwhile, or unreadable: the next file tells the same.
            continue
        if (fingerprint := recorded_in(record, key)) is not None:
            return fingerprint
    return None


def _has_second(root: Path, dataset: str) -> bool:
    beginning = f"{dataset}@"
    if any(name.startswith(beginning) for name in shards.of(root).view().names()):
        return True
    return any(_features(root, name) for name in os.listdir(root) if name.startswith(beginning))


def _features(root: Path, folder: str) -> list[str]:
    try:
        loose = [name for name in os.listdir(root / folder) if name.endswith(naming.SUFFIX)]
    except OSError:
        # No folder: nothing was stored yet.
        loose = []
    return sorted({*loose, *opening.names_in(root, folder)})
