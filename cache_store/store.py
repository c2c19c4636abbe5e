"""The feature store: a folder of `.pt` files under a size limit, shared by any number of processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from cache_store import families, maintenance, meta, naming, settings
from cache_store.archive import Content, last_bytes, open_archive, sound_content
from cache_store.books import Books, NewFile, size_of
from cache_store.errors import DamagedFeature, StoreWriteError
from cache_store.feature_file import PLAINLY, Check, Frames, How
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.opening import open_feature
from cache_store.processes import HERE
from cache_store.put_item import PutItem, encoded_item
from cache_store.reader import OnStale, Reader, Wanted, fitting_name
from cache_store.recipes import recipe_fingerprint
from cache_store.scan import feature_names
from cache_store.settings import Settings
from cache_store.upkeep import Upkeep

if TYPE_CHECKING:
    import torch

    from cache_store.batch_read import Batch
    from cache_store.bulk import Asked

_TICK_EVERY_S = 5.0

logger = logging.getLogger("cache_store")


class FeatureStore(Upkeep):
    """Features by key, one atomic file each. Safe for threads, forks and processes; picklable.

    `root` is a folder, or a URL that fsspec knows (`s3://bucket/prefix`): docs/remote.md says what is different there.

    `limit_bytes` is never passed; above `soft_limit_bytes` eviction begins without making a writer wait. Both are kept
    for later openings; None takes the kept one, and 0 or less means none. Entries put or protected under `run_id` are
    not evicted while a process of that run is at work.

    Raises:
        StoreFormatError: `root` cannot be a store.
        LocalOnly: a limit for a remote root.
        InvalidKey: `run_id` has characters other than letters, digits, ".", "_", ":" and "-".
    """

    def __new__(cls, root: str | os.PathLike[str], **_: object) -> FeatureStore:
        if cls is FeatureStore and naming.is_url(root):
            from cache_store.remote.store import RemoteStore

            return object.__new__(RemoteStore)
        return object.__new__(cls)

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
        self.root = Path(root).absolute()
        self.run_id = run_id
        self._video_dtype: str | None = None  # of the video features put since cache_meta.json was written
        self._assemble(settings.open_root(self.root))
        if limit_bytes is not None or soft_limit_bytes is not None:
            self.set_limit(limit_bytes, soft_limit_bytes=soft_limit_bytes)

    def _assemble(self, limits: Settings) -> None:
        self._pid = HERE.pid
        self._next_tick_s = 0.0
        self._books = Books(self.root, self.run_id)
        self._books.budget.limits = limits
        self._reader = Reader(self.root, self._books)
        # Not weakref.finalize: workers of a DataLoader end without running what atexit would run.
        Finalize(self, _write_the_rest, args=(self._books,), exitpriority=0)

    def _begin(self) -> None:
        # A forked child must neither write into its parent's journal nor wait for its parent's threads'
        # locks.
        if self._pid != HERE.pid:
            self._video_dtype = None
            self._assemble(self._books.budget.limits)
        now_s = monotonic()
        if now_s > self._next_tick_s:
            self._next_tick_s = now_s + _TICK_EVERY_S
            self._books.journal.tick(now_s)
            self._books.usage.tick(now_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.location, self.run_id))

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FeatureStore({self.location!r}, limit_bytes={self.limit_bytes}, run_id={self.run_id!r})"

    @property
    def limits(self) -> Settings:
        """The limits under which this process writes."""
        return self._books.budget.limits

    def set_limit(
        self, limit_bytes: int | None = None, *, soft_limit_bytes: int | None = None, remember: bool = True
    ) -> None:
        """Change the limits; None leaves one as it is, 0 or less means none. The next put evicts what is too much.

        With `remember` later openings take them too, unless the store cannot be written to.

        Raises:
            ValueError: a soft limit above the limit.
        """
        limits = self._books.budget.limits.changed(limit_bytes, soft_limit_bytes)
        if remember:
            try:
                if limits != settings.remembered(self.root):
                    settings.remember(self.root, limits)
            except (StoreWriteError, OSError) as exc:
                # Readers of a read-only store pass their usual limit; they will never need it.
                logger.info("the limit is not remembered: %s", exc)
        self._books.change_limits(limits)

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
        """Store a feature, replacing what the key holds, and return its file; on any error the old one stays.

        Of a video family the first recipe owns the plain folder, another one gets `<dataset>@<fingerprint8>`, and so
        does one that the caller says `is_second`. Where the recipe's `storage` says int8, `vision_features` are kept as
        int8 with their scales and their loss; NaN and infinity cannot be.

        Raises:
            InvalidKey, TypeError, ValueError: key, value, recipe or provenance cannot be stored.
            EntryExists: with `create_only`, when a file of this name is there already.
            StoreFull, StoreWriteError: nothing was published.
        """
        self._begin()
        file = self._new_file(PutItem(key, value, recipe, provenance), is_second=is_second)
        self._books.publish(file, create_only=create_only)
        return self.root / file.name

    def put_many(self, items: Iterable[PutItem], *, create_only: bool = False) -> list[Path]:
        """Store several features with one flush to the disk, each as `put` would; returns their files in order.

        All are in memory at once; as many files as a quarter of those that the process may open share a flush. Of
        several items with one key the last one counts. An error's `published` are those that are in the store all the
        same.

        Raises:
            InvalidKey, TypeError, ValueError, StoreFull: nothing was published.
            EntryExists: with `create_only`, when a file is there already; some others may be published.
            StoreWriteError: the disk failed; some may be published, all others are as they were.
        """
        self._begin()
        files = {file.name: file for file in map(self._new_file, items)}
        self._books.publish_many(list(files.values()), create_only=create_only)
        return [self.root / name for name in files]

    def put_batch(
        self,
        keys: Sequence[StepKey],
        features: torch.Tensor,
        *,
        recipe: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Store row after row of `features`, `[len(keys), *shape]`, each as `put` would, but straight into shards.

        As when they are packed later, at a fraction of the cost; of steps only, and of those below 1 MiB: larger ones
        become files as by `put_many`. Of several rows with one key the last one counts. Each call makes a shard of its
        own, or several: give it some thousand rows. An error's `published` are those that are in the store after all.

        Raises:
            InvalidKey, TypeError, ValueError: keys, features, recipe or provenance cannot be stored; nothing was.
            StoreFull, StoreWriteError, StoreReadError: some rows may be published, all others are as they were.
        """
        self._begin()
        if len(features) != len(keys) or not all(isinstance(key, StepKey) for key in keys):
            raise ValueError(f"{len(features)} features for {len(keys)} keys; give a row for each, and keys of steps")
        if keys and not self._put_into_shards(keys, features, recipe, provenance):
            self.put_many(PutItem(key, row, recipe, provenance) for key, row in zip(keys, features, strict=True))

    def bytes_at(self, path: Path) -> int:
        """Bytes of the file that a put returned; 0 where it is gone already."""
        return size_of(path)

    def adopt(self, file: Path, key: FeatureKey) -> Path:
        """Copy a sound feature file into the store as it is, under another name; returns the new file.

        Raises:
            EntryExists: the name is taken.
            DamagedFeature, InvalidKey, StoreReadError, StoreFull, StoreWriteError: nothing was published.
        """
        self._begin()
        name = naming.relative_path(key)
        with open_archive(file) as opened:
            self._add(name, sound_content(opened))
        return self.root / name

    # What copies from store to store are made by.

    def _content(self, name: str) -> Content:
        """A feature's file by its relative path, every checksum verified; raises as `opening.open_feature`."""
        with open_feature(self.root, name) as opened:
            return sound_content(opened)

    def _end_of(self, name: str) -> tuple[int, bytes] | None:
        """The length of a feature's file and its last bytes, among them its directory; None where there is none."""
        try:
            with open_feature(self.root, name) as opened:
                return last_bytes(opened)
        except FileNotFoundError:
            return None
        except DamagedFeature:
            return 0, b""

    def _add(self, name: str, content: Content) -> None:
        """Publish a file under a name that is free; raises as `put` with `create_only`."""
        self._begin()
        self._books.publish(NewFile(name, [content.whole], (content.fingerprint or "")[:8]), create_only=True)

    def _claim(self, key: VideoKey, fingerprint: str) -> str:
        """The owner of a video family, which becomes this recipe if there is none."""
        return families.claim(self.root, key, fingerprint)

    def _owner_of(self, key: VideoKey) -> str | None:
        """As `_claim`, without making any; None where there is none."""
        return families.owner_of(self.root, key)

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
        """The feature as it was put, on the CPU, or None for a miss. A damaged file is set aside and a miss.

        Without `recipe` nothing is compared; a file without one fits any. `on_stale` says what another recipe's feature
        means: an error, a miss, or use it. Of a video that is the feature in the plain folder: where only folders of
        second recipes have one, it is a miss in every case, because nothing says which of them is meant; for "use", as
        without `recipe`, a warning for each data set names them. The main tensor is the bare tensor, or
        `vision_features` of a dict.

        A feature that is kept as int8 comes dequantised: in the dtype of `out`, in `dtype`, or as the tower gave it.
        Its field `dtype` says "int8", and `quantisation` what was lost. A recipe asks for int8 in its `storage`, and no
        other recipe gets it. `exact`: refuse it, which `on_stale="use"` cannot overrule.

        `out`: a contiguous CPU tensor, such as a pinned one, of the main tensor's dtype and shape, which is filled and
        takes its place. After a miss its content is undefined.
        `frames`: a slice or a sequence, array or tensor of indices along the main tensor's first dimension; only their
        bytes are read, and their checksum, which covers the whole tensor, is not verified.
        `check`: "once" verifies a large file's checksum the first time that this process reads it, a small one's
        always; "always"; or "size", structure and sizes only.
        `mmap`: map instead of read, copy-on-write, where the file system is this machine's own; else, and for int8, it
        is read.

        Raises:
            RecipeMismatch, InexactFeature, InvalidKey, StoreReadError.
            ValueError: an option is none of the above, or `out` or `dtype` does not fit.
            IndexError: a frame beyond the feature's.
        """
        if self._pid != HERE.pid or monotonic() > self._next_tick_s:
            self._begin()
        if on_stale != "error" and on_stale not in ("miss", "use"):
            raise ValueError(f"on_stale is {on_stale!r}; give 'error', 'miss' or 'use'")
        is_checked = check == "once" or check == "always"
        is_whole = out is None and frames is None and not mmap and dtype is None
        if is_checked and is_whole and type(key) is StepKey:
            fingerprint = None if recipe is None else recipe_fingerprint(recipe)
            value = self._reader.read_step(naming.step_path(key), fingerprint)
            if value is not None:
                return value
        if check not in ("once", "always", "size"):
            raise ValueError(f"check is {check!r}; give 'once', 'always' or 'size'")
        how = PLAINLY
        if not (out is None and frames is None and not mmap and check == "once" and dtype is None and not exact):
            how = How(out, frames, check, mmap, None if dtype is None else str(dtype).removeprefix("torch."), exact)
        return self._reader.read(key, Wanted.of(recipe), on_stale, how)

    def prefetch(self, asked: Asked, *, wait: bool = True) -> None:
        """Nothing: what lies in a folder need not be fetched. A store behind a URL downloads it."""

    def get_batch(
        self,
        keys: Sequence[FeatureKey],
        *,
        out: torch.Tensor | None = None,
        recipe: Mapping[str, Any] | None = None,
        on_stale: OnStale = "error",
    ) -> Batch:
        """The features of several keys, all of one dtype and shape, as rows of one tensor `[len(keys), *shape]`.

        Each is as `get` would read it; of dicts the main tensor. Rows of `missing` positions are undefined. `out`, a
        contiguous CPU tensor, is filled and returned. Packed features are copied straight from their shard; the
        checksum of each is verified the first time that this process reads it.

        Raises:
            RecipeMismatch, InvalidKey, StoreReadError: as `get`.
            ValueError: the features, or `out`, do not fit together.
        """
        self._begin()
        if on_stale != "error" and on_stale not in ("miss", "use"):
            raise ValueError(f"on_stale is {on_stale!r}; give 'error', 'miss' or 'use'")
        if out is not None and (out.device.type != "cpu" or not out.is_contiguous() or out.shape[:1] != (len(keys),)):
            raise ValueError(
                f"out is {list(out.shape)} on {out.device}; give a contiguous CPU tensor, a row for each key"
            )
        return self._reader.read_batch(keys, Wanted.of(recipe), on_stale, out)

    def delete(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> bool:
        """Delete the file at `path_of(key)`; False when there was none."""
        self._begin()
        return self._books.delete(self._relative(key, recipe))

    def protect(self, keys: Iterable[FeatureKey], *, recipe: Mapping[str, Any] | None = None) -> None:
        """Keep the entries that `get` would find from eviction while this store's run is active, as if it had put them.

        Raises:
            ValueError: the store was opened without `run_id`.
        """
        self._begin()
        if self.run_id is None:
            raise ValueError("protect() needs a store that was opened with run_id=")
        wanted = Wanted.of(recipe)
        self._books.protect([name for key in keys if (name := self._found_at(key, wanted)) is not None], self.run_id)

    def _found_at(self, key: FeatureKey, wanted: Wanted) -> str | None:
        # A video may be found under an alias, or in the plain folder of another recipe; a step has one name.
        return naming.step_path(key) if isinstance(key, StepKey) else fitting_name(self.root, key, wanted)

    def keys(self, dataset: str | None = None) -> Iterator[FeatureKey]:
        """The stored keys in the order of their paths.

        Video files of the old scripts are left out: their names are hashes and they carry no record.
        """
        return maintenance.stored_keys(self._record, self._names(), dataset)

    def _names(self) -> Iterator[str]:
        """The relative paths of all features, in no order."""
        return feature_names(self.root)

    def flush_meta(self) -> None:
        """Rewrite `cache_meta.json` from what is stored; `close` does it after video features were put."""
        self._begin()
        with self._books.reconciled() as view:
            meta.write(self.root, view.table, self._video_dtype)
            self._video_dtype = None

    def close(self) -> None:
        """Write what is still in memory. The store can be used again; it then opens a new journal."""
        self._begin()
        if self._video_dtype is not None:
            self.flush_meta()
        self._books.close()

    def _new_file(self, item: PutItem, *, is_second: bool = False) -> NewFile:
        encoded = encoded_item(item)
        self._video_dtype = encoded.video_dtype or self._video_dtype
        name = families.claimed_name(self.root, item.key, encoded.fingerprint, is_second=is_second)
        return NewFile(name, encoded.buffers, (encoded.fingerprint or "")[:8])


def _reopened(root: str, run_id: str | None) -> FeatureStore:
    return FeatureStore(root, run_id=run_id)


def _write_the_rest(books: Books) -> None:
    # A store that nobody closed; in a forked child journal and usage do nothing.
    books.usage.flush()
    books.journal.close()
