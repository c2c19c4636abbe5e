"""Finds and reads one feature: where to look, which recipe fits, and what to do with a damaged file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cache_store import int8, naming, shards
from cache_store.archive import Record
from cache_store.books import Books
from cache_store.dataset_names import names_to_search
from cache_store.errors import DamagedFeature, InexactFeature, RecipeMismatch, StoreReadError, StoreWriteError
from cache_store.fast_read import FastReader
from cache_store.feature_file import PLAINLY, How, load
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.opening import identity, is_file, open_feature, read_record
from cache_store.recipes import differences, recipe_fingerprint

if TYPE_CHECKING:
    import torch

    from cache_store.batch_read import Batch, BatchReader

OnStale = Literal["error", "miss", "use"]
State = Literal["missing", "present", "stale"]

logger = logging.getLogger("cache_store")


@dataclass(frozen=True)
class Wanted:
    """The recipe that a caller asks for; without one every file fits, and a file without one fits any."""

    recipe: Mapping[str, Any] | None
    fingerprint: str | None

    @classmethod
    def of(cls, recipe: Mapping[str, Any] | None) -> Wanted:
        return ANY if recipe is None else cls(recipe, recipe_fingerprint(recipe))

    def fits(self, record: Record | None) -> bool:
        if self.fingerprint is None or record is None or record.recipe_fingerprint is None:
            return True
        return record.recipe_fingerprint == self.fingerprint

    def needs_a_look_inside(self, record: Record | None) -> bool:
        """Whether the file has to say itself that it is exact, because no recipe of its own does."""
        is_told = record is not None and record.recipe_fingerprint is not None
        return self.recipe is not None and not is_told and not int8.is_asked_for(self.recipe)


ANY = Wanted(None, None)


@dataclass(frozen=True, eq=False)
class _Found:
    value: object


@dataclass(frozen=True, eq=False)
class Stale:
    """A feature of another recipe."""

    name: str
    record: Record
    inexact: InexactFeature | None = None  # there may be no recipe to blame


class Reader:
    """Reads features of one store without any lock; tells the books what was read and what was damaged."""

    def __init__(self, root: Path, books: Books) -> None:
        self._root = root
        self._prefix = f"{root}/"
        self._is_packed = False  # the last feature that was read, or looked for, was no loose file
        self._books = books
        self._usage = books.usage
        self._fast = FastReader()
        self._shards = shards.of(root)
        self._batches: BatchReader | None = None
        self._hinted: set[str] = set()
        self._told_inexact: set[str] = set()

    def read_step(self, name: str, fingerprint: str | None) -> object | None:
        """The feature of this relative path in the shortest way; None where `read` has to look with care."""
        path = self._prefix + name
        # Where the last feature was packed, this one is likely to be: to ask costs a tenth of a failing open.
        self._is_packed = self._is_packed and not os.access(path, os.F_OK)
        try:
            value = self._read_packed(name, fingerprint) if self._is_packed else self._fast.read(path, fingerprint)
        except FileNotFoundError:
            self._is_packed = True
            value = self._read_packed(name, fingerprint)
        except OSError:
            return None
        if value is not None:
            self._usage.hit(name)
        return value

    def _read_packed(self, name: str, fingerprint: str | None) -> object | None:
        view = self._shards.view()
        place = None if view.taken else view.find(name)
        if place is None:
            return None
        buffer = bytearray(place.shard.content(place.row))
        return self._fast.value_in(buffer, len(buffer), fingerprint)

    def read(self, key: FeatureKey, wanted: Wanted, on_stale: OnStale, how: How = PLAINLY) -> object | None:
        """The feature, or None for a counted miss; a damaged file is set aside and is a miss.

        Raises:
            RecipeMismatch: only another recipe's feature is there, and `on_stale` is "error".
            InexactFeature: only an int8 one is there, where exact ones are asked for; as RecipeMismatch.
            StoreReadError: the disk.
            ValueError, IndexError: `how` does not fit what is stored.
        """
        stale: Stale | None = None
        for name in candidates(key, wanted.fingerprint):
            outcome = self._read_one(name, wanted, how)
            if isinstance(outcome, _Found):
                self._usage.hit(name)
                return outcome.value
            stale = stale or outcome
        if stale is not None and on_stale == "error":
            raise stale.inexact or told_mismatch(str(self._root), stale, key, wanted)
        if stale is not None and on_stale == "use":
            outcome = self._read_one(stale.name, ANY, how)
            if isinstance(outcome, _Found):
                self._usage.hit(stale.name)
                return outcome.value
            if outcome is not None and outcome.inexact is not None:
                raise outcome.inexact
        self._usage.missed(naming.relative_path(key))
        if (wanted.fingerprint is None or on_stale == "use") and isinstance(key, VideoKey):
            self._hint_at_second_recipes(key)
        return None

    def read_batch(
        self, keys: Sequence[FeatureKey], wanted: Wanted, on_stale: OnStale, out: torch.Tensor | None
    ) -> Batch:
        """As `FeatureStore.get_batch`."""
        from cache_store.batch_read import BatchReader

        if self._batches is None:
            self._batches = BatchReader(self._root, self._fast, self._usage)

        def read_one(key: FeatureKey) -> object | None:
            value = self.read_step(naming.step_path(key), wanted.fingerprint) if isinstance(key, StepKey) else None
            return self.read(key, wanted, on_stale) if value is None else value

        return self._batches.read(keys, wanted.fingerprint, out, read_one)

    def _read_one(self, name: str, wanted: Wanted, how: How) -> _Found | Stale | None:
        path = self._root / name
        for _ in range(3):
            before = identity(self._root, name)
            if before is None:
                return None
            try:
                with open_feature(self._root, name) as archive:
                    record = archive.record() if wanted.fingerprint is not None else None
                    if record is not None and not wanted.fits(record):
                        return Stale(name, record)
                    is_unsure = wanted.needs_a_look_inside(record)
                    value = load(archive, replace(how, exact=True) if is_unsure else how)
                    if how is PLAINLY and int8.mark_of(value) is None:
                        self._fast.learn(archive)
                    if wanted.fingerprint is None:
                        self._tell_if_inexact(value, name)
                    return _Found(value)
            except InexactFeature as exc:
                return Stale(name, Record(), exc)
            except FileNotFoundError:
                return None
            except OSError as exc:
                raise StoreReadError(str(path), exc) from exc
            except DamagedFeature as exc:
                # A writer may have replaced the damaged file while we read it: then the new one counts.
                if identity(self._root, name) == before:
                    self._set_aside(name, exc.reason)
                    return None
        return None

    def _set_aside(self, name: str, reason: str) -> None:
        self._usage.damaged(name)
        try:
            self._books.set_aside(name, reason)
        except StoreWriteError as exc:
            # A read-only store; a miss all the same.
            logger.warning("%s is damaged (%s); it stays where it is: %s", name, reason, exc)

    def _tell_if_inexact(self, value: object, name: str) -> None:
        # Once for each data set: who says nothing about recipes may not know that somebody built it as int8.
        loss, folder = int8.loss_of(value), name.rpartition("/")[0]
        if loss is None or folder in self._told_inexact:
            return
        self._told_inexact.add(folder)
        logger.warning(
            "%s is kept as int8 (cosine %.6f in its worst token), and so may be others of %s; get(..., exact=True) "
            "refuses them, a recipe asks for what it says",
            name,
            loss.worst_cosine,
            folder or "this store",
        )

    def _hint_at_second_recipes(self, key: VideoKey) -> None:
        # Once per data set: who takes whatever there is would miss without a word in a store that holds only second
        # recipes.
        if key.dataset in self._hinted:
            return
        self._hinted.add(key.dataset)
        for found in names_of_second_recipes(self._root, key):
            folder, _, name = found.partition("/")
            logger.warning(
                "%s is not in the plain folder but in %s; read it with get(key, recipe=...) and "
                "the recipe that `vlm-cache show %s` prints",
                name,
                folder,
                self._root / found,
            )


def state(root: Path, key: FeatureKey, wanted: Wanted) -> State:
    """Whether `read` would find it; looks at names, and at records only when a recipe is asked for."""
    fitting, stale = _looked_for(root, key, wanted)
    return "present" if fitting is not None else "stale" if stale is not None else "missing"


def fitting_name(root: Path, key: FeatureKey, wanted: Wanted) -> str | None:
    """The relative path of the feature that `read` would find; None where none fits."""
    return _looked_for(root, key, wanted)[0]


def mismatch(root: Path, key: FeatureKey, wanted: Wanted) -> RecipeMismatch | None:
    """What `read` would raise for `on_stale="error"`; None where a feature fits, or none is there."""
    fitting, stale = _looked_for(root, key, wanted)
    return None if fitting is not None or stale is None else told_mismatch(str(root), stale, key, wanted)


def _looked_for(root: Path, key: FeatureKey, wanted: Wanted) -> tuple[str | None, Stale | None]:
    """The name of a fitting feature, and, if there is none, the best one of another recipe."""
    if wanted.fingerprint is None:
        return next((name for name in candidates(key, None) if is_file(root, name)), None), None
    stale: Stale | None = None
    for name in candidates(key, wanted.fingerprint):
        try:
            record = read_record(root, name)
        except (FileNotFoundError, DamagedFeature):
            # A damaged file is as good as none: the build makes it again.
            continue
        inexact = _inexactness(root, name) if wanted.needs_a_look_inside(record) else None
        if inexact is None and (record is None or wanted.fits(record)):
            return name, None
        stale = stale or Stale(name, record or Record(), inexact)
    return None, stale


def _inexactness(root: Path, name: str) -> InexactFeature | None:
    """What `load` would raise for a reader of exact features, by the layout alone."""
    try:
        with open_feature(root, name) as archive:
            tree = archive.tree()
    except (FileNotFoundError, DamagedFeature):
        return None
    return None if int8.mark_of(tree) is None else InexactFeature(f"{root}/{name}", int8.loss_of(tree))


def told_mismatch(location: str, stale: Stale, key: FeatureKey, wanted: Wanted) -> RecipeMismatch:
    """The error that a reader of the store at `location` gets for what it found."""
    advice = "rebuild it, or open it with on_stale='use' or without recipe"
    if isinstance(key, VideoKey):
        own = naming.relative_path(key, second_recipe=wanted.fingerprint)
        advice = (
            "get(key) without recipe reads the existing one; a build with this recipe goes to "
            f"{location}/{own}, which get(key, recipe=...) then reads"
        )
    return RecipeMismatch(
        path=f"{location}/{stale.name}",
        found=stale.record.recipe_fingerprint or "",
        wanted=wanted.fingerprint or "",
        differences=differences(stale.record.recipe, wanted.recipe),
        advice=advice,
    )


def candidates(key: FeatureKey, fingerprint: str | None) -> Iterator[str]:
    """The relative paths where a reader looks, best first, each made only when the one before was not enough.

    For videos: the recipe's own folder, the plain folder, then both under every other name of the data set.

    Raises:
        InvalidKey: the key cannot be a file name.
    """
    if not isinstance(key, VideoKey):
        yield naming.relative_path(key)
        return
    for dataset in names_to_search(key.dataset):
        known_as = replace(key, dataset=dataset)
        if fingerprint is not None:
            yield naming.relative_path(known_as, second_recipe=fingerprint)
        yield naming.relative_path(known_as)


def names_of_second_recipes(root: Path, key: VideoKey) -> list[str]:
    """The relative paths of a key's features in the folders of second recipes, those of its own name first."""
    known_as = [replace(key, dataset=dataset) for dataset in names_to_search(key.dataset)]
    files = {one.dataset: naming.relative_path(one).rpartition("/")[2] for one in known_as}
    ends = tuple(f"/{file}" for file in files.values())
    folders = {folder.name for folder in root.glob("*@*")}
    folders |= {found.partition("/")[0] for found in shards.of(root).view().names() if found.endswith(ends)}
    ordered = [(dataset, folder) for dataset in files for folder in sorted(folders) if folder.startswith(f"{dataset}@")]
    names = (f"{folder}/{files[dataset]}" for dataset, folder in ordered)
    return [name for name in names if is_file(root, name)]
