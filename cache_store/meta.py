"""`cache_meta.json`, the summary of the video features that LongVA's scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cache_store import naming
from cache_store.atomic import publish

if TYPE_CHECKING:
    from pyarrow import Table


def write(root: Path, table: Table, dtype: str | None) -> None:
    """Replace the summary. `dtype` is that of the features last written, None to keep what the file says.

    Raises:
        StoreWriteError: the operating system refused.
    """
    from cache_store import entry_table

    datasets: dict[str, dict[str, int]] = {}
    for group in entry_table.groups(table):
        parsed = naming.parse(group.name)
        if parsed is not None and parsed.is_video:
            sums = datasets.setdefault(naming.dataset_shown(group.name), {"count": 0, "size_bytes": 0})
            sums["count"] += group.entries
            sums["size_bytes"] += group.bytes
    fields = {
        "version": "1.0",
        "dtype": dtype or _dtype_before(root),
        "compression": "none",
        "total_samples": sum(sums["count"] for sums in datasets.values()),
        "total_size_bytes": sum(sums["size_bytes"] for sums in datasets.values()),
        "datasets": dict(sorted(datasets.items())),
    }
    publish([json.dumps(fields, indent=2).encode() + b"\n"], root / naming.META)


def _dtype_before(root: Path) -> str:
    try:
        return str(json.loads((root / naming.META).read_bytes())["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        # Missing or damaged: the files themselves carry their dtype.
        return "unknown"
