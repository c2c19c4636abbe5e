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
import pyarrow.compute as pc
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

_GROUP_ROWS = 131_072


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
    table = pa.concat_tables(map(_table, view.shards, view.winners()))
    order, sink = pc.sort_indices(table["name"]), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        # In groups, because a sorted copy of everything would take as much memory again.
        for start in range(0, len(order), _GROUP_ROWS):
            writer.write_table(table.take(order.slice(start, _GROUP_ROWS)).cast(SCHEMA))
    publish([memoryview(sink.getvalue())], root / naming.SHARD_INDEX)


def _table(shard: Shard, counts: np.ndarray) -> pa.Table:
    rows = np.flatnonzero(counts)
    fingerprints = pa.array(shard.fingerprints()[rows]).dictionary_encode()
    columns = {
        "name": shard.arrow_names().filter(pa.array(counts)).cast(pa.string()),
        "shard": pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), pa.array([shard.id])),
        "offset": shard.content_starts[rows],
        "bytes": shard.bytes[rows],
        "crc32": shard.crc32[rows],
        "written_us": shard.written_ns[rows] // 1000,
        "fingerprint8": fingerprints,
    }
    return pa.table(columns)
