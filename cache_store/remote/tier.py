"""The copies of a remote root's features on this machine: a store of its own, shared by all processes, with a limit.

A copy has the bytes of the object, and as its time of writing a stamp of the version that it was made of.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache_store import naming, opening, scan
from cache_store.archive import Record, open_content
from cache_store.books import NewFile
from cache_store.errors import DamagedFeature, StoreFormatError, StoreFull, StoreReadError, StoreWriteError
from cache_store.processes import HERE
from cache_store.remote.objects import ObjectInfo, Objects
from cache_store.sizes import parse_size

if TYPE_CHECKING:
    from pyarrow import Table

    from cache_store.store import FeatureStore

FOLDER_VARIABLE = "VLM_CACHE_TIER"
LIMIT_VARIABLE = "VLM_CACHE_TIER_LIMIT"
_DEFAULT_LIMIT_BYTES = 50 << 30
_NAMES_AT_ONCE = 65_536

logger = logging.getLogger("cache_store")


def folder_of(url: str, service: str) -> Path:
    """Where the copies of a remote root lie: one folder for each URL of each service, below `$VLM_CACHE_TIER` or the
    user's caches. `service` is `Objects.service`.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", url).strip("-")[:60]
    named = f"{url}\n{service}" if service else url
    return _top() / f"{readable}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def _top() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(caches) / "vlm-cache" / "tier").absolute()


def limit_bytes() -> int:
    """How many bytes the copies of one remote root may take: `$VLM_CACHE_TIER_LIMIT`, else 50 GiB; 0 for no limit.

    Raises:
        StoreFormatError: the variable is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_LIMIT_BYTES
    try:
        return parse_size(text)
    except ValueError as exc:
        raise StoreFormatError(str(_top()), f"${LIMIT_VARIABLE}: {exc}, or 0 for no limit") from exc


def stamp_ns(info: ObjectInfo) -> int:
    """The time of writing that a copy of this version gets: the object's second, and digits that tell versions apart.

    So a copy and what it is a copy of change in one rename, and need no second file that could be lost apart from it.
    """
    digest = hashlib.sha256(f"{info.bytes}:{info.written_us}:{info.version}".encode()).digest()
    return info.written_us // 1_000_000 * 1_000_000_000 + int.from_bytes(digest[:8], "big") % 1_000_000_000


def is_copy_of(root: Path, info: ObjectInfo) -> bool:
    """Whether the folder of the copies has one of this version."""
    try:
        status = os.stat(f"{root}/{info.name}")
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (info.bytes, stamp_ns(info))


class Tier:
    """The copies of one remote root. Whatever goes wrong with a copy costs a download, never a wrong answer."""

    def __init__(self, store: FeatureStore, objects: Callable[[], Objects]) -> None:
        self.store = store
        self.root = store.root
        self._objects = objects
        self._forgotten = store.root / naming.FORGOTTEN
        self._has_told = self._has_told_others = False
        self.is_keeping = True  # whether the latest download found room
        self._pid = HERE.pid
        self._underway: dict[str, Future[bytes | None]] = {}
        self.sure: set[str] = set()  # names whose copies this process asked about, or made

    def has(self, name: str) -> bool:
        """Whether there is a copy."""
        return os.path.exists(f"{self.root}/{name}")

    def forget(self, name: str) -> None:
        """Delete a copy, if there is one; what is being downloaded just now becomes none."""
        self._downloads().pop(name, None)
        self._note_forgetting()  # first, for a copy that is made between the two
        if self.has(name):
            try:
                self.store._books.delete(name)
            except StoreWriteError as exc:
                logger.warning("the copy %s/%s may be out of date: %s", self.root, name, exc)

    def _note_forgetting(self) -> None:
        try:
            os.makedirs(self._forgotten.parent, exist_ok=True)
            with open(self._forgotten, "ab") as file:
                file.write(b".")
        except OSError as exc:
            if not self._has_told_others:
                self._has_told_others = True
                logger.warning("copies that others make in %s just now may be out of date: %s", self.root, exc)

    def _forgettings(self) -> tuple[int, int] | None:
        """What changes when a process of this machine deletes a copy, or would if there were one."""
        try:
            status = os.stat(self._forgotten)
        except OSError:
            return None
        return status.st_ino, status.st_size

    def fetch(self, name: str) -> bytes | None:
        """Download an object, check every checksum in it and keep a copy where there is room; None where there is none.

        A thread that asks for what another one is downloading waits for that. Two processes may both download it,
        and one copy stays.

        Raises:
            DamagedFeature: what came is damaged, also when asked for again.
            StoreReadError: the service refused or could not be reached.
        """
        mine: Future[bytes | None] = Future()
        underway = self._downloads().setdefault(name, mine)
        if underway is not mine:
            return underway.result()
        try:
            mine.set_result(self._downloaded(name, mine))
        except BaseException as exc:
            mine.set_exception(exc)
            raise
        finally:
            if self._downloads().get(name) is mine:
                self._downloads().pop(name, None)
        return mine.result()

    def _downloads(self) -> dict[str, Future[bytes | None]]:
        if self._pid != HERE.pid:
            # No thread of the parent goes on in a forked child.
            self._pid, self._underway = HERE.pid, {}
        return self._underway

    def _downloaded(self, name: str, mine: Future[bytes | None]) -> bytes | None:
        path = f"{self._objects().url}/{name}"
        before = self._forgettings()
        got = self._objects().get(name, _with_version)
        if got is None:
            self.forget(name)
            return None
        try:
            fingerprint8 = _checked(path, got[0])
        except DamagedFeature:
            # On its way, perhaps.
            got = self._objects().get(name, _with_version) or got
            fingerprint8 = _checked(path, got[0])
        if self._downloads().get(name) is mine:  # else this process has replaced or deleted it meanwhile
            self._keep(NewFile(name, [got[0]], fingerprint8), stamp_ns(got[1]))
            if self._forgettings() != before:
                self._confirm(name)
            self.sure.add(name)
        return got[0]

    def _confirm(self, name: str) -> None:
        """Delete a copy that was made while another process, which found none to delete, replaced the object."""
        try:
            if self.has(name):
                self.is_current(name)
        except StoreReadError:
            self.forget(name)

    def _keep(self, file: NewFile, stamp: int) -> None:
        try:
            self.store._books.publish_copy(file, stamp)
            self.is_keeping = True
        except (StoreFull, StoreWriteError) as exc:
            self.is_keeping = False
            if not self._has_told:
                self._has_told = True
                logger.warning("no copy is kept of %s, nor perhaps of others: %s", file.name, exc)

    def is_current(self, name: str) -> bool:
        """Whether a copy is of the version that the service has now; a copy that is not is deleted.

        Raises:
            StoreReadError: the service refused or could not be reached.
        """
        info = self._objects().head(name)
        if info is not None and is_copy_of(self.root, info):
            return True
        self.forget(name)
        return False

    def make_sure(self, name: str) -> None:
        """Ask, once in a process, about a copy that tells no recipe: what has one may have taken its object's place.

        Raises:
            StoreReadError: as `is_current`.
        """
        if name in self.sure:
            return
        record = self.record(name)
        if record is not None and record.recipe_fingerprint is None:
            self.is_current(name)
        self.sure.add(name)

    def compare(self, page: list[ObjectInfo]) -> None:
        """Delete those copies that are of other versions than a listing tells."""
        for info in page:
            if self.has(info.name) and not is_copy_of(self.root, info):
                self.forget(info.name)

    def forget_all_but(self, table: Table) -> None:
        """Delete the copies whose names a listing lacks."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = list(scan.loose_names(self.root))
        for start in range(0, len(names), _NAMES_AT_ONCE):
            part = pa.array(names[start : start + _NAMES_AT_ONCE], pa.string())
            for name in part.filter(pc.invert(pc.is_in(part, value_set=table["name"]))).to_pylist():
                self.forget(name)

    def fits(self, name: str, fingerprint: str | None) -> bool:
        """Whether a copy is of the recipe with this fingerprint, or tells none."""
        record = self.record(name)
        return record is not None and record.recipe_fingerprint in (None, fingerprint)

    def record(self, name: str) -> Record | None:
        """What the store wrote beside a feature, by its copy; empty if others wrote it, None: no sound copy is here."""
        try:
            return replace(opening.read_record(self.root, name) or Record(), name=name)
        except (FileNotFoundError, DamagedFeature):
            return None


def _with_version(content: bytes, info: ObjectInfo) -> tuple[bytes, ObjectInfo]:
    return content, info


def _checked(path: str, content: bytes) -> str:
    """The first digits of the recipe in a sound feature file.

    Raises:
        DamagedFeature: it is not sound.
    """
    with open_content(path, content) as opened:
        opened.verify()
        record = opened.record()
    return ((record.recipe_fingerprint if record is not None else None) or "")[:8]
