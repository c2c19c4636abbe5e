"""The snapshot: the accounts at one moment, so that journals need not be read from their beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache_store.accounts import Accounts, Counters, Entry, Tail
from cache_store.atomic import publish
from cache_store.processes import Owner

_FORMAT = 1
_CHUNK_LINES = 10_000


def read(path: Path, *, with_entries: bool) -> tuple[Accounts, int, int] | None:
    """The accounts in a snapshot, its total (published and reserved bytes) and its own file's bytes.

    Without `with_entries` only the first line is read. None when it is missing, damaged or of another format:
    it is a hint, and a scan of the files replaces it.
    """
    accounts = Accounts()
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline())
            if header["format"] != _FORMAT:
                return None
            accounts.counters = Counters(**header["counters"])
            accounts.tails = {name: _tail(fields) for name, fields in header["journals"].items()}
            if with_entries:
                for raw in file:
                    _, _, used, size, written, fingerprint8, runs, _, name = raw[:-1].decode().split("\t")
                    accounts.entries[name] = Entry(int(size), int(written), int(used), fingerprint8, runs)
                accounts.published_bytes = sum(entry.bytes for entry in accounts.entries.values())
                if accounts.published_bytes != header["published_bytes"]:
                    return None
            file.seek(0, 2)
            return accounts, header["published_bytes"] + header["reserved_bytes"], file.tell()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, accounts: Accounts) -> None:
    """Replace the snapshot.

    Raises:
        StoreWriteError: the operating system refused.
    """
    header = {
        "format": _FORMAT,
        "published_bytes": accounts.published_bytes,
        "reserved_bytes": accounts.reserved_bytes,
        "counters": asdict(accounts.counters),
        "journals": {name: asdict(tail) for name, tail in accounts.tails.items()},
    }
    first = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    publish(_chunks(first, accounts), path)


def _chunks(first: bytes, accounts: Accounts) -> Iterator[bytes]:
    yield first
    lines: list[str] = []
    for name, entry in accounts.entries.items():
        lines.append(
            f"p\t{entry.bytes}\t{entry.used_us}\t{entry.bytes}\t{entry.written_us}"
            f"\t{entry.fingerprint8}\t{entry.runs}\t0\t{name}\n"
        )
        if len(lines) == _CHUNK_LINES:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _tail(fields: dict[str, Any]) -> Tail:
    owner = fields["owner"]
    return Tail(
        fields["offset"],
        None if owner is None else Owner(**owner),
        fields["is_closed"],
        dict(fields["reserved"]),
    )
