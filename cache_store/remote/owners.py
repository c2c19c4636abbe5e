"""Which recipe owns a video family's plain folder on a remote root: as `families`, with markers that are objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic

from cache_store import naming
from cache_store.archive import Record
from cache_store.errors import EntryExists
from cache_store.families import marked_in, recorded_in
from cache_store.keys import FeatureKey, VideoKey
from cache_store.remote.objects import Objects

_BELIEVED_FOR_S = 2.0


class Owners:
    """The owners of the families of one remote root; what was found is believed for a moment.

    Another machine's `prune` may have freed the family since, and another recipe have become its owner. What the old
    one puts in that moment lies in the plain folder, in the place of the new one's feature of the same video if there
    is one by then. So does what was on its way when the family was freed. Who asks for a recipe is never given it for
    another's: each feature tells its own.
    """

    def __init__(self, objects: Callable[[], Objects], record_of: Callable[[str], Record | None]) -> None:
        self._objects = objects
        self._record_of = record_of
        self._known: dict[str, tuple[str, float]] = {}  # and when it was read, by the monotonic clock
        self._recorded: dict[str, tuple[str | None, float]] = {}  # of families without a marker
        self._folders: dict[str, tuple[bool, float]] = {}  # which folders of second recipes are there

    def owner_of(self, key: VideoKey) -> str | None:
        """Fingerprint (64 hex digits) of the recipe that owns the plain folder for this family; None: free.

        Where someone removed the marker, one of its features tells, if the put's own name is among them.
        """
        marker = naming.family_marker(key)
        owner, read_s = self._known.get(marker, (None, 0.0))
        if owner is None or monotonic() - read_s > _BELIEVED_FOR_S:
            owner = self._marked(marker)
            if owner is None:
                self._known.pop(marker, None)
                return self._told_by_features(key, marker)
            self._known[marker] = (owner, monotonic())
        return owner

    def claimed_name(self, key: FeatureKey, fingerprint: str | None, *, is_second: bool = False) -> str:
        """The name that a put of this recipe writes; the first recipe of a video family becomes its owner.

        Raises:
            InvalidKey: the key cannot be a file name.
            StoreReadError, StoreWriteError: the marker cannot be read or put.
        """
        if not isinstance(key, VideoKey) or fingerprint is None:
            return naming.relative_path(key)
        owner = self.owner_of(key) if is_second else self.claim(key, fingerprint)
        return self.name_for(key, fingerprint, is_owner=owner == fingerprint)

    def name_for(self, key: VideoKey, fingerprint: str, *, is_owner: bool) -> str:
        """As `families.name_for`; an owner's own folder, which few have, is looked for once in a moment."""
        second = naming.relative_path(key, second_recipe=fingerprint)
        folder = second.rpartition("/")[0]
        if is_owner and not (self._is_there(folder) and self._objects().head(second)):
            return naming.relative_path(key)
        self._folders.pop(folder, None)  # a put may make it
        return second

    def _is_there(self, folder: str) -> bool:
        is_there, read_s = self._folders.get(folder, (False, -inf))
        if monotonic() - read_s > _BELIEVED_FOR_S:
            is_there = folder in self._objects().folders(folder)
            self._folders[folder] = (is_there, monotonic())
        return is_there

    def claim(self, key: VideoKey, fingerprint: str) -> str:
        """Make `fingerprint` the owner unless there is one; the same for all who race where puts can be create-only."""
        marker = naming.family_marker(key)
        while (owner := self.owner_of(key)) is None or marker not in self._known:
            content = {"dataset": key.dataset, "recipe_fingerprint": owner or fingerprint}
            try:
                self._objects().put(marker, json.dumps(content, sort_keys=True).encode(), create_only=True)
            except EntryExists:
                if self._marked(marker) is None:
                    # Unreadable: no owner can be told from it, and it would block the family for ever.
                    self._objects().delete(marker)
        return owner

    def release(self, emptied: Iterable[str]) -> None:
        """Forget the owners of data sets of which no feature is left, a second recipe's neither."""
        gone = set(emptied)
        for marker in list(self._objects().names_in(naming.RECIPES)):
            content = self._objects().get(marker, lambda content, _: content)
            try:
                is_gone = json.loads(content or b"")["dataset"] in gone
            except (ValueError, KeyError, TypeError):
                continue  # no marker of ours
            if is_gone:
                self._objects().delete(marker)
        self._known.clear()
        self._recorded.clear()
        self._folders.clear()

    def _marked(self, marker: str) -> str | None:
        return marked_in(self._objects().get(marker, lambda content, _: content) or b"")

    def _told_by_features(self, key: VideoKey, marker: str) -> str | None:
        owner, read_s = self._recorded.get(marker, (None, -inf))
        if monotonic() - read_s > _BELIEVED_FOR_S:
            names = self._objects().names_in(key.dataset)
            owner = next(filter(None, (recorded_in(self._record_of(name), key) for name in names)), None)
            self._recorded[marker] = (owner, monotonic())
        return owner
