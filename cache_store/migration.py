"""Brings caches of earlier scripts under today's names: copied, checked, never recomputed and never deleted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from cache_store import archive, families, naming, shards
from cache_store.codec import decode, same_feature
from cache_store.errors import DamagedFeature, EntryExists, InvalidKey, StoreFormatError, StoreReadError
from cache_store.keys import StepKey, VideoKey
from cache_store.migration_sources import Move, Moved, left_alone
from cache_store.recipes import recipe_fingerprint
from cache_store.store import FeatureStore


class _Planned(NamedTuple):
    move: Move
    target: str  # relative to the store


def migrate(
    store: FeatureStore, moves: Iterable[Move | Moved], *, recipe: Mapping[str, Any] | None, dry_run: bool
) -> Iterator[Moved]:
    """Copy each file to its new name in the store; what is there already and differs is named, not touched.

    Tensors stay the very same bits. A file that is only renamed keeps all its bytes, unless it has no recipe and
    `recipe` gives it one. Two different features for one name are both left. Nothing is evicted meanwhile.

    Raises:
        StoreFormatError: features of the store are packed.
        StoreFull, StoreWriteError: the store cannot take the next file.
    """
    refuse_packed(store.root)
    planned = list(_with_targets(store.root, moves, recipe))
    contested = _contested(planned)
    # Room made by eviction would come from sources not yet copied, or from copies whose sources a person then deletes.
    with nullcontext() if dry_run else store.reading(datasets=["*"]):
        for one in planned:
            if isinstance(one, Moved):
                yield one
            elif one.target in contested:
                reason = "another old file, which differs, has this key"
                yield left_alone(one.move.source, "conflict", reason, target=one.target)
            else:
                yield _moved(store, one, recipe, dry_run=dry_run)


def refuse_packed(root: Path) -> None:
    """Refuse a folder with shards: what lies in them would be passed over.

    Raises:
        StoreFormatError: there are some.
    """
    view = shards.of(root).view()
    if view.shards or view.taken or view.damaged:
        reason = "features in it are packed, which a migration does not look into; `vlm-cache unpack` it first"
        raise StoreFormatError(str(root), reason)


def _with_targets(
    root: Path, moves: Iterable[Move | Moved], recipe: Mapping[str, Any] | None
) -> Iterator[_Planned | Moved]:
    """Where each file will go; of a video family without an owner the first recipe that comes becomes it, as in put."""
    owners: dict[str, str | None] = {}
    for move in moves:
        if isinstance(move, Moved):
            yield move
            continue
        try:
            if isinstance(move.key, VideoKey):
                yield _planned_video(root, move, move.key, recipe, owners)
            else:
                yield _Planned(move, naming.relative_path(move.key))
        except (InvalidKey, FileNotFoundError) as exc:
            yield left_alone(move.source, "skipped", str(exc))
        except (TypeError, ValueError) as exc:
            yield left_alone(move.source, "skipped", f"its recipe cannot be stored: {exc}")
        except (DamagedFeature, StoreReadError) as exc:
            yield left_alone(move.source, "damaged", exc.reason)


def _planned_video(
    root: Path, move: Move, key: VideoKey, recipe: Mapping[str, Any] | None, owners: dict[str, str | None]
) -> _Planned | Moved:
    made = _recipe_of(archive.read_record(move.source), recipe)
    fingerprint = None if made is None else recipe_fingerprint(made)
    if move.second_recipe not in (None, (fingerprint or "")[:8]):
        says = f"its record says {fingerprint[:8]}" if fingerprint else "it carries none, nor does --recipe give it"
        return left_alone(move.source, "skipped", f"its folder is of recipe {move.second_recipe}, but {says}")
    if fingerprint is None:
        return _Planned(move, naming.relative_path(key))
    family = naming.family_marker(key)
    if family not in owners:
        owners[family] = families.owner_of(root, key)
    if move.second_recipe is None:
        owners[family] = owners[family] or fingerprint
    is_owner = owners[family] == fingerprint
    return _Planned(move, naming.relative_path(key, second_recipe=None if is_owner else fingerprint))


def _recipe_of(record: archive.Record | None, recipe: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return recipe if record is None or record.recipe is None else record.recipe


def _contested(planned: Iterable[_Planned | Moved]) -> set[str]:
    """The names that different features are to have; damaged files have no say."""
    sources: dict[str, list[Path]] = {}
    for one in planned:
        if isinstance(one, _Planned):
            sources.setdefault(one.target, []).append(one.move.source)
    return {target for target, rivals in sources.items() if len(rivals) > 1 and _differ(rivals)}


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


def _moved(store: FeatureStore, planned: _Planned, recipe: Mapping[str, Any] | None, *, dry_run: bool) -> Moved:
    (source, key, _), shown = planned
    target = store.root / shown
    try:
        size = source.stat().st_size
        problem = archive.check(source)
    except FileNotFoundError as exc:
        return left_alone(source, "skipped", str(exc))
    except StoreReadError as exc:
        return left_alone(source, "damaged", f"cannot be read: {exc.reason}")
    if problem is not None:
        return left_alone(source, "damaged", problem, target=shown)
    value = decode(source)
    if isinstance(key, VideoKey) and isinstance(value, dict) and "dataset" in value:
        value = {**value, "dataset": key.dataset}
    if _is_no_copy(source, target):
        return left_alone(source, "conflict", "a link in the store is in the place of the copy", target=shown)
    if target.exists():  # not `contains`, which would find the alias's own file
        if _holds(target, value):
            return Moved(str(source), shown, "there", None, 0)
        return left_alone(source, "conflict", "another feature has this name already", target=shown)
    if not dry_run:
        try:
            _copy(store, planned, value, recipe)
        except EntryExists:
            return left_alone(source, "conflict", "another process wrote this name this moment", target=shown)
        except (TypeError, ValueError) as exc:
            return left_alone(source, "skipped", f"it cannot have this recipe: {exc}", target=shown)
        if not _holds(target, value):
            return left_alone(source, "conflict", "the copy does not read back as the same feature", target=shown)
    return Moved(str(source), shown, "copied", None, size)


def _copy(store: FeatureStore, planned: _Planned, value: object, recipe: Mapping[str, Any] | None) -> None:
    (source, key, second_recipe), _ = planned
    record = archive.read_record(source)
    made = _recipe_of(record, recipe)
    if isinstance(key, StepKey) and made == (None if record is None else record.recipe):
        store.adopt(source, key)
        return
    provenance = record.provenance if record is not None else None
    store.put(
        key,
        value,
        recipe=made,
        provenance=provenance,
        create_only=True,
        is_second=second_recipe is not None,
    )


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
