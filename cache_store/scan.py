"""Corrects the accounts by the files themselves: a feature exists if and only if its final name exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cache_store import naming
from cache_store.accounts import Accounts
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal
from cache_store.lease import lease
from cache_store.ledger import Ledger, entry_on_disk

_STRAY_AFTER_S = 24 * 3600.0


def feature_names(root: Path) -> Iterator[str]:
    """Relative paths of all features, by names alone: no file is touched. In no order."""
    for folder in (None, *_folders(root)):
        try:
            names = os.listdir(root / folder if folder else root)
        except OSError:
            # Removed since the listing of the root, or not ours to read.
            continue
        for name in names:
            relative = f"{folder}/{name}" if folder else name
            if naming.parse(relative) is not None:
                yield relative


def reconcile(root: Path, ledger: Ledger, journal: Journal) -> None:
    """Load the ledger and make its entries those of the files; only unknown and missing files are looked at.

    Writes a snapshot and sweeps abandoned temporary files where the store is writable.
    """
    with lease(root / naming.LEASE, timeout_s=30.0) as is_held:
        now_s = file_system_now_s(root)
        # Listed before the journals are read: what appears in between is known from them.
        on_disk = set(feature_names(root))
        ledger.load()
        ledger.settle(now_s)
        changed = _correct(root, ledger.accounts, on_disk) or ledger.error_of_sum != 0
        if not is_held:
            return
        if changed or ledger.needs_folding or not ledger.has_snapshot:
            try:
                ledger.fold(journal, now_s)
            except StoreWriteError:
                # A read-only store: this process knows the truth, others find it themselves.
                return
        sweep(root, now_s)


def load_known(root: Path, ledger: Ledger, journal: Journal) -> None:
    """Load the ledger; list the files only if there is no sound snapshot. Not while holding the lease."""
    ledger.load()
    if not ledger.has_snapshot:
        reconcile(root, ledger, journal)


def sweep(root: Path, now_s: float) -> None:
    """Remove temporary files that writers left more than a day ago; `now_s` is the file system's clock."""
    internal = [naming.STORE_FOLDER, naming.JOURNALS, naming.RECIPES]
    for folder in ("", *_folders(root), *internal):
        try:
            names = os.listdir(root / folder)
        except OSError:
            # Not there, or not ours: nothing to tidy.
            continue
        for name in names:
            if name.startswith(naming.TEMP_PREFIX):
                _remove_if_stray(root / folder / name, now_s)


def _remove_if_stray(path: Path, now_s: float) -> None:
    try:
        if now_s - path.stat().st_mtime > _STRAY_AFTER_S:
            path.unlink()
    except OSError:
        # Published or removed meanwhile.
        return


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as listing:
        return sorted(item.name for item in listing if item.name[0] != "." and item.is_dir())


def _correct(root: Path, accounts: Accounts, on_disk: set[str]) -> bool:
    changed = False
    for name in on_disk - accounts.entries.keys():
        entry = entry_on_disk(root / name)
        if entry is not None:
            accounts.set_entry(name, entry)
            changed = True
    for name in accounts.entries.keys() - on_disk:
        # It may have been published after the listing.
        if entry_on_disk(root / name) is None:
            accounts.forget_entry(name)
            changed = True
    return changed
