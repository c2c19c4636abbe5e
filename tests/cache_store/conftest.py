"""Stores in temporary folders, verified and compared with their files after every test."""

from __future__ import annotations

import contextlib
import os

import fsspec
import pytest
import torch

from cache_store import FeatureStore, atomic, naming, snapshot
from cache_store.ledger import Ledger


class SimulatedCrash(BaseException):
    """Ends a writer where a power loss would: no handler of the product may catch it and tidy up."""


def tensor(seed: int, width: int = 64) -> torch.Tensor:
    """A `[1, 1, width]` float16 feature, different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 1, width, generator=generator).half()


def local_url(folder) -> str:
    """The URL of a folder as a file system of files; older versions of fsspec know none that is no path to us."""
    if "local" not in fsspec.available_protocols():
        pytest.skip("this fsspec knows no local://")
    return f"local://{folder}"


def published_bytes(root) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.pt"))


def summed(store) -> int:
    """The total as a writer sees it that knows no entries."""
    view = Ledger(store.root)
    view.refresh()
    return view.total_bytes


def snapshot_of(root):
    """The path of the snapshot that counts."""
    number = snapshot.newest(root)
    assert number is not None
    return root / naming.snapshot_path(number)


def remove_snapshots(root) -> None:
    """As if none had been written yet: the next listing writes one."""
    while snapshot.newest(root) is not None:
        snapshot_of(root).unlink()


@pytest.fixture
def open_store(tmp_path):
    """Opens stores under `tmp_path / "store"`, or under another given name."""
    opened = []

    def open_one(name="store", **options):
        store = FeatureStore(tmp_path / name, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()
        assert store.verify().problems == []
        stats = store.stats()
        assert stats.bytes == published_bytes(store.root)
        assert stats.entries == len(list(store.root.rglob("*.pt")))


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture
def crash_before_rename(monkeypatch):
    @contextlib.contextmanager
    def crashing():
        def crash(*_):
            raise SimulatedCrash

        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, "replace", crash)
            patch.setattr(atomic, "_remove_quietly", lambda temp: None)
            yield

    return crashing


@pytest.fixture
def umask():
    def set_umask(mask):
        before.append(os.umask(mask))

    before: list[int] = []
    yield set_umask
    if before:
        os.umask(before[0])
