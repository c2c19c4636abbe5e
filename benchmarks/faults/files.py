"""Damaged and hostile files: the right value or a miss, never another value, never an execution, never an exception."""

from __future__ import annotations

import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.outcome import Load, Outcome
from benchmarks.faults.values import value_of, version_in
from cache_store import FeatureStore, StepKey
from cache_store.zip_layout import ROOT

_MEMORY_BYTES = 8 << 30


def mutations(load: Load) -> Outcome:
    """Our files, dicts and plain torch.save's, changed at random in many ways."""
    outcome = Outcome()
    chooser = random.Random(load.seed)
    with FeatureStore(load.folder / "store") as store:
        store.put(StepKey("seed", 0), value_of(1, 1), recipe={"weights": "a"})
        store.put(StepKey("seed", 1), {"vision_features": value_of(1, 1), "b": [1, "x", None]})
        torch.save(value_of(1, 1), store.root / "seed_vlm2.pt")
        sound = [store.path_of(StepKey("seed", index)).read_bytes() for index in range(3)]
        for index in range(3):
            store.get(StepKey("seed", index))
        for number in range(load.count):
            kind = chooser.choice(list(_MUTATIONS))
            original = chooser.choice(sound)
            changed = bytes(_MUTATIONS[kind](bytearray(original), chooser))
            path = store.root / "victim_vlm0.pt"
            path.write_bytes(changed)
            try:
                found = store.get(StepKey("victim", 0), check=chooser.choice(("once", "always")))
            except Exception as exc:  # noqa: BLE001 - any exception is what this looks for
                outcome.problems.append(f"mutation {number} ({kind}): {type(exc).__name__}: {exc}")
                continue
            outcome.counts["mutations"] += 1
            value = found["vision_features"] if isinstance(found, dict) else found
            if found is None:
                outcome.counts["misses, set aside"] += 1
                outcome.expect(not path.exists(), f"mutation {number} ({kind}): a damaged file stays")
            else:
                outcome.counts["right values, what was changed means nothing"] += 1
                outcome.expect(version_in(value, 1) == 1, f"mutation {number} ({kind}): another value")
            if number % 1000 == 0:
                for one in store.root.glob(".vlm-cache/quarantine/*"):
                    one.unlink()
    return outcome


def _flip(content: bytearray, chooser: random.Random) -> bytearray:
    for _ in range(chooser.choice((1, 1, 2, 8))):
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    return content


def _cut(content: bytearray, chooser: random.Random) -> bytearray:
    return content[: chooser.randrange(len(content))]


def _grow(content: bytearray, chooser: random.Random) -> bytearray:
    at = chooser.randrange(len(content) + 1)
    return content[:at] + chooser.randbytes(chooser.choice((1, 3, 64, 700))) + content[at:]


def _zero(content: bytearray, chooser: random.Random) -> bytearray:
    at, length = chooser.randrange(len(content)), chooser.choice((1, 16, 512, 4096))
    content[at : at + length] = bytes(len(content[at : at + length]))
    return content


def _swap(content: bytearray, chooser: random.Random) -> bytearray:
    size = chooser.choice((4, 64, 256))
    one, other = (chooser.randrange(len(content) - size) for _ in range(2))
    content[one : one + size], content[other : other + size] = content[other : other + size], content[one : one + size]
    return content


def _edit_number(content: bytearray, chooser: random.Random) -> bytearray:
    """Another size, offset or checksum in one of the zip's headers."""
    markers = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
    places = [at for at in range(len(content) - 4) if bytes(content[at : at + 4]) in markers]
    at = chooser.choice(places) + chooser.randrange(4, 46)
    value = chooser.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(content), chooser.randrange(1 << 32)))
    content[at : at + 4] = struct.pack("<I", value)
    return content


def _noise(content: bytearray, chooser: random.Random) -> bytearray:
    return bytearray(chooser.randbytes(chooser.choice((0, 1, 22, len(content)))))


_MUTATIONS: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "flipped bits": _flip,
    "cut": _cut,
    "grown": _grow,
    "zeroed": _zero,
    "swapped": _swap,
    "edited number": _edit_number,
    "noise": _noise,
}


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def pickles(load: Load) -> Outcome:
    """Hostile pickles in sound zips, read in a child process: nothing runs, nothing crashes, memory stays bounded."""
    outcome = Outcome()
    canary = load.folder / "canary"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES + _address_space(), resource.RLIM_INFINITY))
        code = _read_hostile(load, canary, write_end)
        os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        lines = stream.read().decode().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcome.expect(status == 0, f"the reading process ended with {status} after {len(lines)} files")
    for line in lines:
        what, _, detail = line.partition("|")
        outcome.counts[what] += 1
        if what not in ("misses", "harmless values"):
            outcome.problems.append(f"{what}: {detail}")
    outcome.expect(not canary.exists(), "something was executed")
    return outcome


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _read_hostile(load: Load, canary: Path, report: int) -> int:
    chooser = random.Random(load.seed)
    store = FeatureStore(load.folder / "pickles")
    sys.setrecursionlimit(2000)
    for number in range(load.count):
        name, content = _hostile(chooser, canary)
        (store.root / f"evil_vlm{number}.pt").write_bytes(content)
        try:
            found = store.get(StepKey("evil", number))
            line = "misses" if found is None else f"{_kind(found)}|{name}"
        except Exception as exc:  # noqa: BLE001 - any exception is what this looks for
            line = f"exceptions|{name}: {type(exc).__name__}: {exc}"
        os.write(report, f"{line}\n".encode())
    return 0


def _kind(found: object) -> str:
    """Plain data is what `weights_only` may give; anything else must not come out."""
    plain = (torch.Tensor, dict, list, tuple, set, str, int, float, bool, bytes, complex, torch.Size, torch.dtype)
    return "harmless values" if isinstance(found, plain) else "foreign objects"


def _hostile(chooser: random.Random, canary: Path) -> tuple[str, bytes]:
    shell = f"touch {canary}"
    calls = {
        "os.system": _Call(os.system, shell),
        "os.popen": _Call(os.popen, shell),
        "eval": _Call(eval, f"open({str(canary)!r}, 'w')"),
        "exec": _Call(exec, f"open({str(canary)!r}, 'w')"),
        "open": _Call(open, str(canary), "w"),
        "import": _Call(__import__, "antigravity"),
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "torch.load": _Call(torch.load, str(canary)),
        "torch.save": _Call(torch.save, [1], str(canary)),
        "path": _Call(Path.touch, canary),
        "many zeros": _Call(bytearray, 1 << 40),
        "tensor of a terabyte": _Call(torch.zeros, 1 << 40),
        "deep": _nested(chooser.choice((60, 500))),
        "bomb": _bomb(),
    }
    name = chooser.choice(list(calls))
    value = calls[name]
    if chooser.random() < 0.4:
        value = {"vision_features": value, "x": torch.zeros(2)} if chooser.random() < 0.5 else [value]
    try:
        content = pickle.dumps(value, protocol=chooser.choice((2, 2, 3, 4)))
    except RecursionError:
        content = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    if chooser.random() < 0.2:
        at = chooser.randrange(2, len(content))
        content = (
            content[:at]
            + chooser.choice((b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"0", b"R", b"\x81"))
            + content[at:]
        )
    return name, _zipped(content, chooser)


def _nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


def _bomb() -> object:
    value: object = [0]
    for _ in range(40):
        value = [value, value]
    return value


def _zipped(data_pkl: bytes, chooser: random.Random) -> bytes:
    buffer = BytesIO()
    deflated = chooser.random() < 0.1
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{ROOT}/data.pkl", data_pkl)
        archive.writestr(f"{ROOT}/byteorder", b"little")
        archive.writestr(f"{ROOT}/data/0", bytes(1 << 24) if deflated else bytes(8))
        archive.writestr(f"{ROOT}/version", b"3\n")
    return buffer.getvalue()
