"""Rows `remote-cold` and `remote-warm`: features behind an S3 URL, at their first read on a machine and afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.packed.s3_server import BUCKET, missing_package, s3_server
from benchmarks.packed.scale import Scale
from benchmarks.store.features import bytes_of, shuffled, small_features
from benchmarks.store.keys import step_key
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Row, lines_of, not_measured
from benchmarks.store.small_reads import STORE, batches, check_equal, filled_store, reads
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureStore
from cache_store.naming import relative_path
from cache_store.remote import tier
from cache_store.remote.store import RemoteStore

BASE = "boto3 get_object"
RAW = "raw open, read, close of one file each"
_GET = "FeatureStore(s3://...).get"


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Both rows; one line that says why where no server can be started."""
    package = missing_package()
    if package is not None:
        absent = [not_measured(_GET, f"{package} is not installed")]
        return [Row("remote-cold", "read from S3", "ms per feature", absent)]
    features, order = small_features(scale.remote, scale.width), shuffled(scale.remote)
    with ExitStack() as cleanup:
        loose = cleanup.enter_context(filled_store(folder / "store", features))
        url = cleanup.enter_context(s3_server())
        contents = _uploaded(loose, folder / "first", url, features)
        parts = [order[start : start + scale.batch] for start in range(0, len(order), scale.batch)]
        opened = _Cold(url, folder, parts, features)
        cleanup.callback(opened.close)
        cold = _cold(opened, url, parts, contents)
        cold_s = interleaved_s(cold, rounds=scale.remote_rounds)
        store = _opened(url, folder / "first")
        cleanup.callback(store.close)
        warm = _warm(folder, store, loose, features, order, scale)
        warm_s = quiet_s(store, warm, rounds=scale.remote_rounds)
    what = f"{scale.remote:,} features [1, 1, {scale.width}] float16 of an S3 store"
    remark = f"Random order, {scale.remote_rounds} rounds in turns."
    server = "The service is moto's server in a process of this machine: it answers in its own time, not in a cloud's."
    return [
        Row(
            "remote-cold",
            f"first read of {what}",
            "ms per feature",
            lines_of(cold, cold_s, base=BASE, unit_s=1e-3),
            [remark, server, "The store also verifies each feature and keeps a copy; each round has an empty tier."],
        ),
        Row(
            "remote-warm",
            f"later reads of {what}",
            "µs per feature",
            lines_of(warm, warm_s, base=RAW, unit_s=1e-6),
            [remark, "No request is made: copies in the tier are read as local features are."],
        ),
    ]


def _opened(url: str, copies: Path) -> RemoteStore:
    """The store, with its copies in this folder."""
    with mock.patch.dict(os.environ, {tier.FOLDER_VARIABLE: str(copies)}):
        return RemoteStore(url)


def quiet_s(store: RemoteStore, contestants: Sequence[Contestant], *, rounds: int) -> dict[str, list[float]]:
    """As `interleaved_s`, of what must not ask the service.

    Raises:
        RuntimeError: it did.
    """
    before = store.transfers.requests
    times_s = interleaved_s(contestants, rounds=rounds)
    if store.transfers.requests != before:
        raise RuntimeError("a warm read asked the service")
    return times_s


def _uploaded(loose: FeatureStore, copies: Path, url: str, features: torch.Tensor) -> list[bytes]:
    """Put all features behind the URL; returns the objects' bytes, which are those of the local files."""
    with _opened(url, copies) as store:
        for index, feature in enumerate(features):
            store.put(step_key(index), feature)
    contents = [loose.path_of(step_key(index)).read_bytes() for index in range(len(features))]
    get = _boto3_get(url)
    if [get(index) for index in range(len(features))] != contents:
        raise RuntimeError("the objects are not the files")
    return contents


def _boto3_get(url: str) -> Callable[[int], bytes]:
    import boto3

    client: Any = boto3.client("s3")
    prefix = url.removeprefix(f"s3://{BUCKET}/")

    def get(index: int) -> bytes:
        name = f"{prefix}/{relative_path(step_key(index))}"
        content: bytes = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return content

    return get


class _Cold:
    """The store behind the URL, opened anew with an empty tier as often as asked."""

    def __init__(self, url: str, folder: Path, parts: Sequence[Sequence[int]], features: torch.Tensor) -> None:
        self._url, self._folder, self._parts, self._features = url, folder, parts, features
        self._ready = torch.empty_like(features[: len(parts[0])])
        self._stores: list[RemoteStore] = []

    def empty_tier(self, _: int = 0) -> None:
        self._stores.append(_opened(self._url, self._folder / f"tier-{len(self._stores)}"))

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def one_by_one(self, _: int = 0, *, is_checked: bool = False) -> None:
        store = self._stores[-1]
        for part in self._parts:
            for index in part:
                found = store.get(step_key(index))
                if is_checked:
                    check_equal(_GET, found, self._features[index])

    def in_batches(self, _: int = 0, *, is_checked: bool = False) -> None:
        store = self._stores[-1]
        for part in self._parts:
            out = self._ready[: len(part)]
            store.get_batch([step_key(index) for index in part], out=out)
            if is_checked:
                check_equal("get_batch from S3", out, self._features[list(part)])


def _cold(cold: _Cold, url: str, parts: list[list[int]], contents: list[bytes]) -> list[Contestant]:
    """What fetches each object once.

    Raises:
        RuntimeError: one does not return what was written.
    """
    import s3fs

    system, get = s3fs.S3FileSystem(), _boto3_get(url)
    paths = [f"{url}/{relative_path(step_key(index))}" for index in range(len(contents))]
    order = [index for part in parts for index in part]
    names = [path.removeprefix("s3://") for path in paths]
    together = {name: content for part in parts for name, content in system.cat([paths[at] for at in part]).items()}
    fetched = (list(map(get, range(len(paths)))), list(map(system.cat_file, paths)), [together[name] for name in names])
    if any(one != contents for one in fetched):
        raise RuntimeError("boto3 or s3fs does not return what was written")
    for work in (cold.one_by_one, cold.in_batches):
        cold.empty_tier()
        work(is_checked=True)
    count, size = len(contents), len(parts[0])
    return [
        Contestant(BASE, count, lambda _: [get(index) for index in order]),
        Contestant("s3fs cat_file", count, lambda _: [system.cat_file(paths[index]) for index in order]),
        Contestant(f"{_GET}, cold tier", count, cold.one_by_one, cold.empty_tier),
        Contestant(
            f"s3fs cat, {size} at a time", count, lambda _: [system.cat([paths[at] for at in part]) for part in parts]
        ),
        Contestant(f"get_batch of {size}, cold tier", count, cold.in_batches, cold.empty_tier),
    ]


def _warm(
    folder: Path, store: FeatureStore, loose: FeatureStore, features: torch.Tensor, order: list[int], scale: Scale
) -> list[Contestant]:
    raw = RawFiles(folder / "raw", features[0])
    for index, feature in enumerate(features):
        raw.write(index, bytes_of(feature))

    def fill(of: FeatureStore) -> Callable[[Sequence[int], torch.Tensor], object]:
        return lambda indices, out: of.get_batch([step_key(index) for index in indices], out=out)

    contestants = [
        reads(RAW, raw.read, order, features),
        reads(f"a folder: {STORE}", lambda index: loose.get(step_key(index)), order, features),
        reads(f"{_GET}, warm tier", lambda index: store.get(step_key(index)), order, features),
        batches(f"a folder: get_batch of {scale.batch}", fill(loose), order, features, scale.batch),
        batches(f"get_batch of {scale.batch}, warm tier", fill(store), order, features, scale.batch),
    ]
    # The others are done in an instant; so few reads would time the clock.
    return [
        replace(one, operations=10 * one.operations, run=lambda number, run=one.run: [run(number) for _ in range(10)])  # type: ignore[misc]
        for one in contestants
    ]
