"""A feature store whose root is a URL: the same names and bytes as objects, read through copies on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import maintenance, naming
from cache_store.archive import END_BYTES, Content, Record, open_archive, open_content, sound_content
from cache_store.atomic import publish
from cache_store.bulk import Asked, with_wanted
from cache_store.codec import FeatureInfo, described
from cache_store.errors import CacheStoreError, DamagedFeature, InexactFeature, RecipeMismatch
from cache_store.feature_file import Check, Frames
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.put_item import PutItem, encoded_item
from cache_store.reader import OnStale, Wanted, candidates
from cache_store.recipes import recipe_fingerprint
from cache_store.remote import tier
from cache_store.remote.upkeep import RemoteUpkeep
from cache_store.store import FeatureStore

if TYPE_CHECKING:
    import torch

    from cache_store.batch_read import Batch

_KEYS_AT_ONCE = 1024
_Unkept = dict[str, bytes] | None


class RemoteStore(RemoteUpkeep, FeatureStore):
    """What `FeatureStore(url)` returns. `root` is the folder of the copies, `location` the URL.

    Raises:
        StoreFormatError: the URL's protocol is unknown or its package missing, or there is no such bucket.
        LocalOnly: a limit was given.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        limit_bytes: int | None = None,
        soft_limit_bytes: int | None = None,
        run_id: str | None = None,
    ) -> None:
        if run_id is not None:
            naming.check_run_id(run_id)
        self.run_id = run_id
        self._connect(root)  # first: a URL that leads nowhere leaves no folder behind
        self.set_limit(limit_bytes, soft_limit_bytes=soft_limit_bytes)
        self._tier = tier.Tier(FeatureStore(self.root, limit_bytes=tier.limit_bytes()), self._objects)

    def put(
        self,
        key: FeatureKey,
        value: object,
        *,
        recipe: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        create_only: bool = False,
        is_second: bool = False,
    ) -> Path:
        """As `FeatureStore.put`, with one request; returns where a copy will lie once the feature is read.

        Raises:
            InvalidKey, TypeError, ValueError, EntryExists, StoreWriteError: nothing was published.
            StoreReadError: the service could not be asked which recipe owns the family; nothing was published.
        """
        name, content = self._encoded(PutItem(key, value, recipe, provenance), is_second=is_second)
        self._upload(name, content, create_only=create_only)
        return self.root / name

    def put_many(self, items: Iterable[PutItem], *, create_only: bool = False) -> list[Path]:
        """Store several features, several requests at a time; returns where copies will lie, in order.

        After an error no upload goes on: none is begun any more, and those that were have ended. Its `published` are
        those that are in the store.

        Raises:
            InvalidKey, TypeError, ValueError: nothing was published.
            EntryExists: with `create_only`, when an object is there already; some others may be published.
            StoreReadError, StoreWriteError: the service failed; some may be published, all others are as they were.
        """
        contents = dict(self._encoded(item) for item in items)
        uploads = {
            self.root / name: self._pool().submit(self._upload, name, content, create_only=create_only)
            for name, content in contents.items()
        }
        try:
            wait(uploads.values(), return_when=FIRST_EXCEPTION)
        finally:
            begun = {path: upload for path, upload in uploads.items() if not upload.cancel()}
        # What goes on behind an error would replace what the caller puts next.
        wait(begun.values())
        try:
            for upload in begun.values():
                upload.result()
        except CacheStoreError as exc:
            exc.published = [path for path, upload in begun.items() if upload.exception() is None]
            raise
        return list(uploads)

    def bytes_at(self, path: Path) -> int:
        """Bytes of the object that a put returned the copy's path of; 0 where it is gone already."""
        info = self._objects().head(path.relative_to(self.root).as_posix())
        return 0 if info is None else info.bytes

    def adopt(self, file: Path, key: FeatureKey) -> Path:
        """As `FeatureStore.adopt`."""
        name = naming.relative_path(key)
        with open_archive(file) as opened:
            self._add(name, sound_content(opened))
        return self.root / name

    def describe(self, name: str) -> FeatureInfo | None:
        """As `cache_store.describe`, of an object by its relative path, downloaded for it; None where there is none.

        Raises:
            DamagedFeature, StoreReadError: as `cache_store.describe`.
        """
        whole = self._objects().get(name, lambda content, _: content)
        if whole is None:
            return None
        with open_content(f"{self.location}/{name}", whole) as opened:
            return described(opened)

    def _content(self, name: str) -> Content:
        whole = self._objects().get(name, lambda content, _: content)
        if whole is None:
            raise FileNotFoundError(f"{self.location}/{name}")
        with open_content(f"{self.location}/{name}", whole) as opened:
            return sound_content(opened)

    def _end_of(self, name: str) -> tuple[int, bytes] | None:
        found = self._objects().tail(name, END_BYTES)
        return None if found is None else (found[1], found[0])

    def _add(self, name: str, content: Content) -> None:
        self._upload(name, content.whole, create_only=True)

    def _claim(self, key: VideoKey, fingerprint: str) -> str:
        return self._owners.claim(key, fingerprint)

    def _owner_of(self, key: VideoKey) -> str | None:
        return self._owners.owner_of(key)

    def _encoded(self, item: PutItem, *, is_second: bool = False) -> tuple[str, bytes]:
        encoded = encoded_item(item)
        name = self._owners.claimed_name(item.key, encoded.fingerprint, is_second=is_second)
        return name, b"".join(encoded.buffers)

    def _upload(self, name: str, content: bytes, *, create_only: bool = False) -> None:
        self._objects().put(name, content, create_only=create_only)
        self._tier.forget(name)

    def get(
        self,
        key: FeatureKey,
        *,
        recipe: Mapping[str, Any] | None = None,
        on_stale: OnStale = "error",
        out: torch.Tensor | None = None,
        frames: Frames | None = None,
        check: Check = "once",
        mmap: bool = False,
        dtype: torch.dtype | None = None,
        exact: bool = False,
    ) -> object | None:
        """As `FeatureStore.get`, from the copy on this machine, which is downloaded first where there is none.

        What a copy does not fit is asked of the service before it is told. A damaged object is a counted miss and
        stays where it is. A service that cannot be reached is no miss.

        Raises:
            RecipeMismatch, InexactFeature, InvalidKey, ValueError, IndexError: as `FeatureStore.get`.
            StoreReadError: the service refused or could not be reached, and there is no copy that tells its recipe.
        """
        is_whole = out is None and frames is None and not mmap and dtype is None
        if type(key) is StepKey and is_whole and check in ("once", "always"):
            fingerprint = None if recipe is None else recipe_fingerprint(recipe)
            self._tier.store._begin()
            value = self._tier.store._reader.read_step(naming.step_path(key), fingerprint)
            if value is not None:
                return value
        options: dict[str, Any] = {"recipe": recipe, "out": out, "frames": frames, "check": check}
        options |= {"mmap": mmap, "dtype": dtype, "exact": exact}
        wanted = Wanted.of(recipe)
        try:
            return self._read(key, wanted, "error", options)
        except (RecipeMismatch, InexactFeature):
            self._drop_late(key, wanted)
            with self._telling(self.root):
                return self._read(key, wanted, on_stale, options, is_every=True)

    @contextmanager
    def _telling(self, copies: Path | str) -> Iterator[None]:
        """Let errors name the URL, and not where a copy lies."""
        try:
            yield
        except (RecipeMismatch, InexactFeature) as exc:
            raise exc.said_of(self.location, copied_to=str(copies)) from exc

    def _read(
        self, key: FeatureKey, wanted: Wanted, on_stale: OnStale, options: dict[str, Any], *, is_every: bool = False
    ) -> object | None:
        copies = self._tier.store
        # Another process may evict a copy before it is read, and a damaged one is set aside; the last try needs none.
        for is_last in (False, False, True):
            unkept = self._fetch(key, wanted, is_every=is_every, needs_copy=not is_last)
            if unkept:
                return self._read_unkept(key, unkept, on_stale, options)
            value = copies.get(key, on_stale=on_stale, **options)
            if value is not None or unkept is None or self._has_copies(key, wanted):
                return value
        return None

    def _has_copies(self, key: FeatureKey, wanted: Wanted) -> bool:
        return any(map(self._tier.has, candidates(key, wanted.fingerprint)))

    def _fetch(self, key: FeatureKey, wanted: Wanted, *, is_every: bool = False, needs_copy: bool = True) -> _Unkept:
        """Download what a reader of this key looks at, unless there is a copy; returns what found no room there.

        None: there is nothing. With `is_every` under all its names, where the reader was not content with the first
        that fits. Without `needs_copy` all is downloaded and returned.
        """
        unkept: dict[str, bytes] = {}
        is_found = False
        names = list(candidates(key, wanted.fingerprint))
        if needs_copy and not is_every and wanted.fingerprint is not None and self._has_own(names, wanted.fingerprint):
            return unkept  # whichever of its names it has, it is the same feature
        for name in names:
            if needs_copy and wanted.fingerprint is not None:
                self._tier.make_sure(name)
            if not needs_copy or not self._tier.has(name):
                try:
                    content = self._tier.fetch(name)
                except DamagedFeature as exc:
                    self._note_damage(name, exc)
                    continue
                if content is None:
                    continue
                if not needs_copy or not self._tier.has(name):
                    unkept[name] = content
            is_found = True
            if not is_every and (wanted.fingerprint is None or self._tier.fits(name, wanted.fingerprint)):
                break
        return unkept if is_found else None

    def _has_own(self, names: list[str], fingerprint: str) -> bool:
        """Whether the first fitting copy tells this recipe: one that tells none fits it only where it has no own."""
        for record in map(self._tier.record, names):
            if record is not None and record.recipe_fingerprint in (None, fingerprint):
                return record.recipe_fingerprint is not None
        return False

    def _read_unkept(
        self, key: FeatureKey, unkept: dict[str, bytes], on_stale: OnStale, options: dict[str, Any]
    ) -> object | None:
        with tempfile.TemporaryDirectory(prefix="vlm-cache-") as folder, FeatureStore(folder) as passing:
            for name, content in unkept.items():
                publish([content], Path(folder) / name)
            with self._telling(folder):
                return passing.get(key, on_stale=on_stale, **options)

    def _drop_late(self, key: FeatureKey, wanted: Wanted) -> None:
        """Delete what copies of a key are out of date."""
        for name in candidates(key, wanted.fingerprint):
            if self._tier.has(name):
                self._tier.is_current(name)

    def _look_again(self, key: FeatureKey, wanted: Wanted) -> None:
        self._drop_late(key, wanted)
        self._fetch(key, wanted, is_every=True)

    def prefetch(self, asked: Asked, *, wait: bool = True) -> None:
        """Download what is asked for and not on this machine yet, many at a time, if there is room for copies.

        Without `wait` that goes on behind the caller, and whatever fails is told by the read that needs it.

        Raises:
            StoreReadError: the service refused or could not be reached.
        """
        if not self._tier.is_keeping:
            return
        missing = {
            (key, wanted.fingerprint): (key, wanted)
            for key, wanted in with_wanted(asked)
            if not self._tier.has(next(candidates(key, wanted.fingerprint)))
        }.values()
        if wait:
            list(self._pool().map(lambda pair: self._fetch(*pair), missing))
            return
        failures: list[Exception] = []

        def fetch(key: FeatureKey, wanted: Wanted) -> None:
            if failures:
                return  # the end of this process waits for what it has begun
            try:
                self._fetch(key, wanted)
            except CacheStoreError as exc:
                failures.append(exc)

        for pair in missing:
            self._pool().submit(fetch, *pair)

    def get_batch(
        self,
        keys: Sequence[FeatureKey],
        *,
        out: torch.Tensor | None = None,
        recipe: Mapping[str, Any] | None = None,
        on_stale: OnStale = "error",
    ) -> Batch:
        """As `FeatureStore.get_batch`; what is not on this machine yet is downloaded at once.

        Raises:
            RecipeMismatch, InvalidKey, ValueError: as `FeatureStore.get_batch`.
            StoreReadError: as `get`.
        """
        if on_stale not in ("error", "miss", "use"):
            raise ValueError(f"on_stale is {on_stale!r}; give 'error', 'miss' or 'use'")
        copies, wanted = self._tier.store, Wanted.of(recipe)
        if recipe is not None:
            names = {name for key in keys for name in candidates(key, wanted.fingerprint)}
            list(self._pool().map(self._tier.make_sure, names - self._tier.sure))
        self.prefetch((key, recipe) for key in keys)
        try:
            found = copies.get_batch(keys, out=out, recipe=recipe)
        except (RecipeMismatch, InexactFeature):
            list(self._pool().map(lambda key: self._look_again(key, wanted), keys))
            with self._telling(self.root):
                found = copies.get_batch(keys, out=out, recipe=recipe, on_stale=on_stale)
        return self._filled(found, keys, recipe, on_stale, is_given=out is not None)

    def _filled(
        self,
        found: Batch,
        keys: Sequence[FeatureKey],
        recipe: Mapping[str, Any] | None,
        on_stale: OnStale,
        *,
        is_given: bool,
    ) -> Batch:
        """The batch with what has no copy: evicted since, damaged, or larger than the limit of the copies."""
        late: dict[int, object] = {}
        for position in found.missing:
            value = self.get(keys[position], recipe=recipe, on_stale=on_stale)
            if value is not None:
                late[position] = value
        return found.with_rows(late, is_given=is_given) if late else found

    def delete(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> bool:
        """Delete the object that `put` would replace, and its copy here; False when there was none."""
        return self._delete_name(self._relative(key, recipe))

    def protect(self, keys: Iterable[FeatureKey], *, recipe: Mapping[str, Any] | None = None) -> None:
        """Nothing: no object is ever evicted.

        Raises:
            ValueError: the store was opened without `run_id`.
        """
        if self.run_id is None:
            raise ValueError("protect() needs a store that was opened with run_id=")

    def keys(self, dataset: str | None = None) -> Iterator[FeatureKey]:
        """As `FeatureStore.keys`; each video is asked for its record, many at a time."""
        names = sorted(self._names())
        for start in range(0, len(names), _KEYS_AT_ONCE):
            found = self._pool().map(lambda name: self._keys_of(name, dataset), names[start : start + _KEYS_AT_ONCE])
            yield from (key for keys in found for key in keys)

    def _names(self) -> Iterator[str]:
        with self._viewed() as view:
            names: list[str] = view.table["name"].to_pylist()
        return iter(names)

    def _keys_of(self, name: str, dataset: str | None) -> list[FeatureKey]:
        return list(maintenance.stored_keys(self._record, [name], dataset))

    def _records_at(self, name: str) -> Iterator[Record]:
        """That of the copy, which costs no request; then that of the object, if it is another one by now."""
        here = self._tier.record(name)
        if here is not None:
            yield here
        yield from (told for told in super()._records_at(name) if told != here)

    def flush_meta(self) -> None:
        """Nothing: a remote root has no `cache_meta.json`."""

    def close(self) -> None:
        """Write what the copies' store still has in memory."""
        self._tier.store.close()
