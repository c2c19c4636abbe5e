"""Writes the features of many steps straight into shards, where a file for each would cost more than its bytes.

A shard's rows count from the moment that it has its name. Rows under whose names there are files count once these are
out of the way, as when files are packed; and what a packer, alive or dead, holds of these goes, because it is older.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_store import codec, int8, naming, shards
from cache_store.archive import Record
from cache_store.atomic import publish
from cache_store.books import Books
from cache_store.errors import CacheStoreError
from cache_store.journal import Line, line, now_us
from cache_store.keys import StepKey
from cache_store.packing import SHARD_BYTES, remove_folders
from cache_store.put_item import key_fields
from cache_store.recipes import recipe_fingerprint
from cache_store.shard_file import Head, Shard, encoded_by
from cache_store.shards import Place
from cache_store.taking import Identity, identity_of, take

if TYPE_CHECKING:
    import torch

_FRAME_BYTES = 2048  # around a tensor and its record, about
_INDEX = b'"vlm_idx":'


def put_batch(
    root: Path,
    books: Books,
    keys: Sequence[StepKey],
    features: torch.Tensor,
    recipe: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
) -> bool:
    """As `FeatureStore.put_batch`; False, and nothing done, where each feature needs a file of its own."""
    import torch

    if not isinstance(features, torch.Tensor):
        raise TypeError(f"features is a {type(features).__name__}; give a tensor with a row for each key")
    places = {naming.step_path(key): place for place, key in enumerate(keys)}  # of several with one key the last
    int8.for_storage(features, recipe)  # refuses a recipe that asks for it
    fingerprint = None if recipe is None else recipe_fingerprint(recipe)
    records = _Records(recipe, fingerprint, provenance)
    row_bytes = features.numel() // len(keys) * features.element_size() + len(records.of(keys[0])) + _FRAME_BYTES
    if not naming.is_small(row_bytes) or not codec.can_encode_many(features):
        return False
    names, at_once = list(places), SHARD_BYTES // row_bytes
    published: list[str] = []
    try:
        for start in range(0, len(names), at_once):
            some = names[start : start + at_once]
            rows = [places[name] for name in some]
            values = features[start : start + at_once] if len(names) == len(keys) else features[rows]
            files = codec.Many(values, [records.of(keys[row]) for row in rows])
            _NewShard(root, books, some, files, (fingerprint or "")[:8]).publish(published)
    except CacheStoreError as exc:
        exc.published = [root / name for name in published]
        raise
    return True


class _Records:
    """The records of steps as JSON: those of one episode and instruction differ in a number."""

    def __init__(self, recipe: Mapping[str, Any] | None, fingerprint: str | None, provenance: Mapping[str, Any] | None):
        self._beside = Record(None, recipe, fingerprint, provenance)
        self._around: dict[tuple[str, str | None], tuple[bytes, bytes]] = {}

    def of(self, key: StepKey) -> bytes:
        index = b"%d" % int(key.vlm_idx)
        around = self._around.get((key.dataset, key.prompt_hash))
        if around is None:
            whole = replace(self._beside, key=key_fields(key)).to_json()
            # Within its strings the record escapes quotes, so the first such name is the key's own.
            head, name, rest = whole.partition(_INDEX)
            around = self._around[key.dataset, key.prompt_hash] = head + name, rest.removeprefix(index)
        return around[0] + index + around[1]


class _NewShard:
    """One shard's way into the store, in the place of whatever has its rows' names."""

    def __init__(self, root: Path, books: Books, names: Sequence[str], files: codec.Many, fingerprint8: str) -> None:
        self._root = root
        self._books = books
        self._files = files
        # Files of one size lie side by side, because they are written by one call.
        self._order = sorted(range(len(names)), key=files.sizes.__getitem__)
        self._names = [names[place] for place in self._order]
        self._sizes = [files.sizes[place] for place in self._order]
        self._fingerprint8 = fingerprint8
        self._loose = self._found_in([f"{root}/"])
        # The older versions that have to go, wherever packers put them meanwhile: told by identity, because what others
        # put meanwhile must stay, and the file system's clock is too coarse to tell which came first.
        self._old = self._loose
        if packers := shards.of(root).view().taken:
            self._old = self._found_in([f"{root}/", *(f"{folder}/" for folder in packers)])

    def publish(self, published: list[str]) -> None:
        """Add the names of what the store has by then to `published`, after an error too.

        Raises:
            StoreFull, StoreWriteError, StoreReadError: what is not `published` is as it was.
        """
        names, loose, now_ns = self._names, self._loose, self._books.now_us() * 1000
        content = encoded_by(
            self._write,
            [
                Head(name, size, now_ns, now_ns, self._fingerprint8, row not in loose)
                for row, (name, size) in enumerate(zip(names, self._sizes, strict=True))
            ],
        )
        books, shard = self._books, naming.shard_name()
        books.mark_format()
        packed = books.packed(names)
        # Announced: whoever lists the features before they are journalled does not take them for forgotten ones.
        books.note(line("w", 0, *names))
        unsaid, done = set(names), dict[str, int]()
        try:
            with books.room_for(shard, len(content), may_evict=True) as claimed_bytes:
                publish([content], self._root / shard)
            try:
                done.update({name: 0 for row, name in enumerate(names) if row not in loose})
                if self._old:
                    self._displace(Shard(self._root / shard), done)
            finally:
                published += done
                self._journal(shard, len(content) - claimed_bytes, claimed_bytes, done, packed)
                unsaid.difference_update(done)
        finally:
            if unsaid:
                books.note(line("x", 0, *unsaid))

    def _journal(
        self, shard: str, grown_bytes: int, claimed_bytes: int, done: Mapping[str, int], packed: dict[str, list[Place]]
    ) -> None:
        """Say that the shard is there, and in it what is `done`, each in the place of a file of so many bytes."""
        books, sizes = self._books, dict(zip(self._names, self._sizes, strict=True))
        waste = books.superseded(packed, set(done), olds=done)
        time_us, fields = now_us(), f"\t{books.now_us()}\t{self._fingerprint8}\t{books.run_id or ''}\t0\t"
        features = [
            Line("p", sizes[name] - old_bytes, f"{sizes[name]}{fields}{name}", time_us)
            for name, old_bytes in done.items()
        ]
        # An entry of its own, of those of its bytes that are no feature's.
        rest = sum(map(sizes.__getitem__, done))
        frame = line("p", grown_bytes - rest, grown_bytes + claimed_bytes - rest, time_us, "", "", claimed_bytes, shard)
        books.journal.append(*waste, frame, *features)
        books.count_puts(len(features))

    def _write(self, contents: memoryview, starts: Sequence[int]) -> None:
        ends = [*starts[1:], len(contents)]
        for size, run in itertools.groupby(range(len(starts)), key=self._sizes.__getitem__):
            rows = list(run)
            area = np.frombuffer(contents[starts[rows[0]] : ends[rows[-1]]], np.uint8).reshape(len(rows), -1)
            self._files.write([self._order[row] for row in rows], area[:, :size])

    def _found_in(self, folders: Sequence[str]) -> dict[int, os.stat_result]:
        """By row the file of its name in the first of these folders that has one."""
        found = {}
        for row, name in enumerate(self._names):
            for folder in folders:
                try:
                    found[row] = os.stat(folder + name)
                    break
                except OSError:
                    # No such file; if it cannot be reached, the write says why.
                    continue
        return found

    def _displace(self, shard: Shard, done: dict[str, int]) -> None:
        """Make the rows count that have files under their names, and remove these and what packers took of them."""
        folder = self._root / naming.taken_folder()
        ready: dict[int, int] = {}
        try:
            for row, status in self._loose.items():
                # What is gone by then is no file that is replaced: evicted, deleted, or in a packer's hands.
                is_taken = take(self._root, self._names[row], folder, identity_of(status))
                ready[row] = status.st_size if is_taken else 0
        finally:
            # After an error too: of what was taken the row counts, of what was not the file.
            shard.mark("live", ready, flush=True)
            shard.mark("dead", set(self._loose).difference(ready))
            for row, old_bytes in ready.items():
                shards.unlink(folder / self._names[row])
                done[self._names[row]] = old_bytes
            remove_folders(folder)
        for row, status in self._old.items():
            while self._is_found(self._names[row], status, shard, folder):
                pass  # and removed: looked for again, because a packer may have moved it meanwhile

    def _is_found(self, name: str, old: os.stat_result, shard: Shard, folder: Path) -> bool:
        """Remove an older version from where packers put it; False where it is nowhere."""
        view, identity = shards.of(self._root).view(), identity_of(old)
        rows = [
            place
            for place in view.places(name)
            if (place.bytes, int(place.shard.written_ns[place.row])) == (old.st_size, old.st_mtime_ns)
            and place.shard.id != shard.id
            and not place.shard.is_dead(place.row)
        ]
        found = [at / name for at in view.taken if _identity_at(at / name) == identity]
        if take(self._root, name, folder, identity):
            found.append(folder / name)
        for path in found:
            shards.unlink(path)
        if found:
            remove_folders(folder)
        shards.supersede(rows)
        return bool(found or rows)


def _identity_at(path: Path) -> Identity | None:
    try:
        return identity_of(os.stat(path))
    except OSError:
        return None
