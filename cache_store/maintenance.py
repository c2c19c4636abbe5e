"""What an operator asks of a whole store: its entries, their soundness, and which to delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_store import archive, naming
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.keys import FeatureKey, VideoKey
from cache_store.reports import EntryInfo, Problem, VerifyReport

if TYPE_CHECKING:
    from pyarrow import Table

_VERIFY_THREADS = 4  # CRC-32 runs without Python's lock; more threads than this only make a disk seek


@dataclass(frozen=True)
class Selection:
    """Which entries `prune` means: those that meet every condition given."""

    datasets: frozenset[str] | None = None
    older_than_s: float | None = None  # since written
    unused_for_s: float | None = None
    model_signature: str | None = None
    recipe_fingerprint: str | None = None  # or its beginning, at least 8 hex digits

    def matches(self, root: Path, entry: EntryInfo, now_s: float) -> bool:
        if self.datasets is not None and not self.datasets & {entry.dataset, entry.dataset.partition("@")[0]}:
            return False
        if self.older_than_s is not None and now_s - entry.mtime < self.older_than_s:
            return False
        if self.unused_for_s is not None and now_s - entry.last_use < self.unused_for_s:
            return False
        if self.model_signature is None and self.recipe_fingerprint is None:
            return True
        return self._matches_record(root / entry.name)

    def _matches_record(self, path: Path) -> bool:
        """By what the file itself says; files that say nothing are never meant."""
        try:
            record = archive.read_record(path)
        except (FileNotFoundError, DamagedFeature, StoreReadError):
            # Not readable, so not known to be meant: prune must not guess.
            return False
        if record is None:
            return False
        signature = (record.key or {}).get("model_signature")
        if self.model_signature is not None and signature != self.model_signature:
            return False
        wanted = self.recipe_fingerprint
        return wanted is None or (record.recipe_fingerprint or "").startswith(wanted)


def entry_infos(table: Table) -> Iterator[EntryInfo]:
    """All entries, sorted by name."""
    from cache_store import entry_table

    for name, entry in entry_table.by_name(table):
        shown = naming.dataset_shown(name)
        yield EntryInfo(
            name, shown, entry.bytes, entry.written_us / 1e6, entry.used_us / 1e6, entry.fingerprint8 or None
        )


def stored_keys(root: Path, names: Iterable[str], dataset: str | None) -> Iterator[FeatureKey]:
    """The keys of the named files, of one data set or all, sorted by path; without files that do not tell their key."""
    for name in sorted(names):
        parsed = naming.parse(name)
        if parsed is not None and dataset in (None, parsed.dataset):
            key = parsed.key or recorded_key(root / name)
            if key is not None:
                yield key


def recorded_key(path: Path) -> VideoKey | None:
    """The video key that a file's record tells; None when it tells none, is damaged or went away."""
    try:
        record = archive.read_record(path)
        if record is None or record.key is None or record.key["kind"] != "video":
            return None
        fields = record.key
        return VideoKey(fields["dataset"], fields["video_id"], fields["nframe"], fields["model_signature"])
    except (FileNotFoundError, DamagedFeature, KeyError):
        return None


def verify_files(root: Path, names: Iterable[str], progress: Callable[[int, int], None] | None) -> VerifyReport:
    """Check every file's structure and checksums; `progress(done, total)` is called after each."""
    wanted = sorted(names)
    problems: list[Problem] = []
    checked = 0
    with ThreadPoolExecutor(_VERIFY_THREADS) as pool:
        for name, (exists, reason) in zip(wanted, pool.map(lambda n: _check(root / n), wanted), strict=True):
            checked += exists
            if reason is not None:
                problems.append(Problem(name, reason))
            if progress is not None:
                progress(checked, len(wanted))
    return VerifyReport(checked, problems)


def _check(path: Path) -> tuple[bool, str | None]:
    try:
        return True, archive.check(path)
    except FileNotFoundError:
        # Evicted since the listing: no problem, and nothing was checked.
        return False, None
    except StoreReadError as exc:
        return True, f"cannot be read: {exc.reason}"


def selected(
    root: Path, entries: Iterable[EntryInfo], selection: Selection, now_s: float, down_to_bytes: int | None
) -> list[EntryInfo]:
    """The entries that meet the selection; of those, with `down_to_bytes`, the least recently used that must go."""
    chosen, total_bytes = [], 0
    for entry in entries:
        total_bytes += entry.bytes
        if selection.matches(root, entry, now_s):
            chosen.append(entry)
    if down_to_bytes is None:
        return chosen
    going = []
    for entry in sorted(chosen, key=lambda entry: (entry.last_use, entry.name)):
        if total_bytes <= down_to_bytes:
            break
        going.append(entry)
        total_bytes -= entry.bytes
    return going
