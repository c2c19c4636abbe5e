"""`packed/index.parquet`: where each packed feature lies, for programs that know Parquet and not this package.

A hint, written anew whenever shards are: the shards themselves say what counts. The bytes `offset` to `offset + bytes`
of a shard are the feature's `.pt` file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_store import naming, shards
from cache_store.atomic import publish
from cache_store.shard_file import Shard

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("crc32", pa.uint32()),
        ("written_us", pa.int64()),
        ("fingerprint8", pa.string()),
    ]
)


def write(root: Path) -> None:
    """Replace the index by what counts in the shards now; without shards there is none, and no folder.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    view = shards.of(root).view()
    if not view.shards:
        with contextlib.suppress(OSError):
            os.unlink(root / naming.SHARD_INDEX)
        with contextlib.suppress(OSError):
            os.rmdir(root / naming.PACKED)  # not if anything else is in it
        return
    tables = [_table(shard, counts) for shard, counts in zip(view.shards, view.winners(), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables).sort_by("name"), sink, compression="zstd")
    publish([memoryview(sink.getvalue())], root / naming.SHARD_INDEX)


def _table(shard: Shard, counts: np.ndarray) -> pa.Table:
    rows = np.flatnonzero(counts)
    columns = [
        shard.names_of(rows),
        [shard.id] * len(rows),
        shard.content_starts[rows],
        shard.bytes[rows],
        shard.crc32[rows],
        shard.written_ns[rows] // 1000,
        [shard.fingerprint8(row) for row in rows.tolist()],
    ]
    return pa.table([pa.array(column) for column in columns], names=SCHEMA.names).cast(SCHEMA)
