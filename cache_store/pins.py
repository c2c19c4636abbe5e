"""Pins and readers' leases: which entries nobody may evict, one small file each, without any lock."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_store import naming
from cache_store.atomic import publish
from cache_store.clock import file_system_now_s
from cache_store.dataset_names import names_to_search
from cache_store.dataset_patterns import DatasetPatterns, check_pattern, named
from cache_store.errors import InvalidKey, StoreReadError, StoreWriteError
from cache_store.processes import Owner, is_alive, this_process
from cache_store.reports import PinInfo

_SHORTEST_PREFIX = 4
_RENEW_EVERY_S = 600.0

logger = logging.getLogger("cache_store")


@dataclass(frozen=True)
class Pin:
    """What one pin protects, and for how long. With an owner it is a reader's lease and ends with its process."""

    id: str  # 32 hex digits
    datasets: tuple[str, ...]  # as `DatasetPatterns` takes them
    names: tuple[str, ...]  # relative paths of single features
    expires: float | None  # seconds since 1970 by the file system's clock; None: until it is removed
    owner: Owner | None
    note: str

    def info(self) -> PinInfo:
        """As the store tells about it."""
        holder = None if self.owner is None else f"{self.owner.host.partition('|')[0]} {self.owner.pid}"
        return PinInfo(self.id, list(self.datasets), len(self.names), self.expires, holder, self.note)


def add(
    root: Path,
    *,
    datasets: Iterable[str] = (),
    names: Iterable[str] = (),
    for_s: float | None = None,
    owner: Owner | None = None,
    note: str = "",
) -> Pin:
    """Protect data sets and single features from now on, for `for_s` seconds or until the pin is removed.

    Neither has to exist yet. A lease's holder must call `renew` at least every half hour.

    Raises:
        InvalidKey: a data set or a name that cannot be a feature's.
        ValueError: nothing to protect, or `for_s` is no number above 0.
        StoreWriteError: the store cannot be written to.
    """
    if for_s is not None and not (math.isfinite(for_s) and for_s > 0):
        raise ValueError(f"a pin for {for_s} seconds protects nothing; give a number above 0, or None for ever")
    expires = None if for_s is None else file_system_now_s(root) + for_s
    pin = Pin(uuid.uuid4().hex, named(datasets), tuple(names), expires, owner, note)
    if not pin.datasets and not pin.names:
        raise ValueError("a pin needs a data set or a feature to protect")
    for dataset in pin.datasets:
        check_pattern(dataset)
    for name in pin.names:
        if naming.parse(name) is None:
            raise InvalidKey("is not the relative path of a feature", field="name", value=name)
    _write(root, pin)
    return pin


def renew(root: Path, pin: Pin) -> None:
    """Show other hosts that the lease's holder lives. A file that they took for dead's is written again.

    Raises:
        StoreWriteError: the store cannot be written to any more.
    """
    path = root / naming.pin_path(pin.id)
    try:
        os.utime(path)
    except FileNotFoundError:
        _write(root, pin)
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc


@contextmanager
def held(root: Path, *, datasets: Iterable[str], names: Iterable[str]) -> Iterator[None]:
    """Hold a reader's lease for the length of a `with`; a thread renews it.

    Raises:
        InvalidKey, ValueError, StoreWriteError: as `add`.
    """
    lease = add(root, datasets=datasets, names=names, owner=this_process(None), note="reader's lease")
    is_over = threading.Event()

    def keep_alive() -> None:
        while not is_over.wait(_RENEW_EVERY_S):
            # A full or failing disk: the lease still holds for this host, and for others for an hour.
            with contextlib.suppress(StoreWriteError):
                renew(root, lease)

    threading.Thread(target=keep_alive, name="vlm-cache-lease", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        with contextlib.suppress(StoreWriteError):
            _unlink(root, lease.id)


def remove(root: Path, which: str) -> int:
    """Take back pins and return how many: by id, by at least 4 first digits of one, or all of a data set.

    Of a pin of several data sets only the named one is taken back. Readers' leases go by id alone: whoever
    unpins a data set does not mean the processes that are reading it.

    Raises:
        ValueError: `which` begins more than one id.
        StoreReadError, StoreWriteError: the system refused.
    """
    pins = _all(root)
    by_dataset = [pin for pin in pins if which in pin.datasets and pin.owner is None and pin.id != which]
    if by_dataset:
        for pin in by_dataset:
            _without(root, pin, which)
        return len(by_dataset)
    meant = [pin for pin in pins if len(which) >= _SHORTEST_PREFIX and pin.id.startswith(which)]
    if len(meant) > 1:
        raise ValueError(f"{which!r} begins {len(meant)} pins: {', '.join(pin.id for pin in meant)}; give more of it")
    return sum(_unlink(root, pin.id) for pin in meant)


def active(root: Path, now_s: float) -> list[Pin]:
    """The pins that protect something at `now_s`, the file system's clock; ordered by what they protect.

    Expired ones and leases of dead processes are left out. A file that cannot be read or understood counts
    as a pin of everything, for ever: nobody knows what it protected, so nothing may be lost. It is warned
    about once, and goes when someone removes it.

    Raises:
        StoreReadError: the pins cannot even be listed.
    """
    return [pin for pin in _all(root) if _is_active(root, pin, now_s)]


def sweep(root: Path, now_s: float) -> int:
    """Remove the files of expired pins and of dead processes' leases; returns how many.

    Errors are ignored: such a file protects nothing, and the next sweep finds it again.
    """
    swept = 0
    for pin in _all(root):
        if not _is_active(root, pin, now_s):
            try:
                swept += _unlink(root, pin.id)
            except StoreWriteError:
                # A read-only store, or another user's folder with the sticky bit.
                continue
    return swept


class Protected:
    """Which features a set of pins covers. Made for millions of questions: the answer is kept by data set."""

    def __init__(self, pins: Iterable[Pin]) -> None:
        pins = list(pins)
        self._names = frozenset(name for pin in pins for name in pin.names)
        # Readers of a benchmark also look under its aliases.
        datasets = {alias for pin in pins for name in pin.datasets for alias in names_to_search(name)}
        self._datasets = DatasetPatterns(datasets)
        self._is_empty = not datasets
        self._answers: dict[str, bool] = {}

    def covers(self, name: str) -> bool:
        """Whether the feature with this relative path must not be evicted."""
        if name in self._names:
            return True
        if self._is_empty:
            return False
        # All that parsing would tell of the data set, at a tenth of the cost: a video's file name is a hash.
        folder, _, file = name.rpartition("/")
        group = f"{folder}/{file.rpartition('_vlm')[0]}"
        answer = self._answers.get(group)
        if answer is None:
            parsed = naming.parse(name)
            if parsed is None:
                return False
            answer = self._answers[group] = self._datasets.matches(parsed.dataset, parsed.fingerprint8)
        return answer


def _is_active(root: Path, pin: Pin, now_s: float) -> bool:
    if pin.expires is not None and pin.expires <= now_s:
        return False
    if pin.owner is None:
        return True
    try:
        renewed_s = os.stat(root / naming.pin_path(pin.id)).st_mtime
    except FileNotFoundError:
        # Given back since the listing. If its holder still lives, it is written again.
        return False
    except OSError:
        # Nobody can tell how old it is.
        return True
    return is_alive(pin.owner, silent_s=now_s - renewed_s)


def _all(root: Path) -> list[Pin]:
    try:
        files = os.listdir(root / naming.PINS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise StoreReadError(str(root / naming.PINS), exc) from exc
    ids = (naming.pin_id(file) for file in files)
    pins = (_read(root, pin_id) for pin_id in ids if pin_id is not None)
    return sorted((pin for pin in pins if pin is not None), key=lambda pin: (pin.datasets, pin.names, pin.id))


def _read(root: Path, pin_id: str) -> Pin | None:
    path = root / naming.pin_path(pin_id)
    try:
        return _parsed(pin_id, json.loads(path.read_bytes()))
    except FileNotFoundError:
        # Removed since the listing.
        return None
    except OSError as exc:
        problem = f"cannot be read ({exc.strerror or exc})"
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as exc:
        problem = f"is damaged ({type(exc).__name__})"
    _warn_once(str(path), problem)
    return Pin(pin_id, ("*",), (), None, None, f"the pin's file {problem}: protects everything until it is removed")


@functools.cache
def _warn_once(path: str, problem: str) -> None:
    logger.warning(
        "the pin %s %s; until it is removed (vlm-cache pin --remove) nothing is evicted from this store", path, problem
    )


def _parsed(pin_id: str, fields: Any) -> Pin:
    """Check what a file of unknown history says.

    Raises:
        ValueError, KeyError, TypeError, ArithmeticError: it is no pin.
    """
    datasets, names, note = fields["datasets"], fields["names"], fields["note"]
    for texts in (datasets, names, [note]):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError("not a list of strings")
    for dataset in datasets:
        check_pattern(dataset)
    expires = None if fields["expires"] is None else float(fields["expires"])
    owner = None
    if fields["owner"] is not None:
        told = fields["owner"]
        owner = Owner(str(told["host"]), int(told["pid"]), str(told["started"]), str(told["run_id"]))
        if not 0 < owner.pid < 2**31:
            raise ValueError(f"{owner.pid} is no process id")
    return Pin(pin_id, tuple(datasets), tuple(names), expires, owner, note)


def _without(root: Path, pin: Pin, dataset: str) -> None:
    rest = tuple(name for name in pin.datasets if name != dataset)
    if rest or pin.names:
        _write(root, Pin(pin.id, rest, pin.names, pin.expires, pin.owner, pin.note))
    else:
        _unlink(root, pin.id)


def _write(root: Path, pin: Pin) -> None:
    content = json.dumps(asdict(pin), sort_keys=True).encode("ascii") + b"\n"
    publish([content], root / naming.pin_path(pin.id))


def _unlink(root: Path, pin_id: str) -> bool:
    path = root / naming.pin_path(pin_id)
    try:
        os.unlink(path)
    except FileNotFoundError:
        # Another process was first.
        return False
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    return True
