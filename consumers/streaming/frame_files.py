"""Pixels of frames by number, in memory or in a file without a name, lossless."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from typing import IO

import numpy as np

from consumers.streaming.errors import FramesOfParent
from consumers.streaming.fork_aware_lock import ForkAwareLock


class FrameFiles:
    """All frames lie in one file, so that their number is not bounded by that of open files.

    A file without a name is freed by the system when it is closed or its process ends, killed or not. It is as long as
    the frames that were held at once, and a new frame takes the first gap that is long enough.

    Frames on disk belong to the process that kept them: a forked child shares the file, in which its parent goes on
    writing, and neither reads nor writes there. After `clear` it begins a file of its own. Frames in memory are copied
    by a fork, as all memory is.
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._on_disk = on_disk
        self._is_of_parent = False
        self._file: IO[bytes] | None = None  # while frames are on disk
        self._held: dict[int, tuple[tuple[int, ...], np.ndarray | int]] = {}  # pixels, or where in the file they begin
        self._lock = ForkAwareLock()  # a frame that is read is not replaced by one that comes
        _ALL.add(self)

    @property
    def nbytes(self) -> int:
        """The bytes of all pixels held."""
        return sum(math.prod(shape) for shape, _ in self._held.values())

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Keep a copy of uint8 `pixels`.

        Raises:
            OSError: the disk is full or fails; nothing is kept.
            FramesOfParent: the file is that of the process which forked this one.
        """
        with self._lock:
            self._check_own()
            self._held[number] = pixels.shape, self._written(pixels) if self._on_disk else pixels.copy()

    def _written(self, pixels: np.ndarray) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="vlm-cache-frames-", buffering=0)  # noqa: SIM115 - held open
        start = self._gap(pixels.nbytes)
        left, place = np.ascontiguousarray(pixels).data.cast("B"), start
        while left:
            written = os.pwrite(self._file.fileno(), left, place)
            left, place = left[written:], place + written
        return start

    def _gap(self, nbytes: int) -> int:
        end = 0
        for start, shape in sorted((start, shape) for shape, start in self._held.values() if isinstance(start, int)):
            if start - end >= nbytes:
                break
            end = start + math.prod(shape)
        return end

    def get(self, number: int) -> np.ndarray:
        """Return a copy of a frame's pixels.

        Raises:
            KeyError: it is not held.
            FramesOfParent: as `put`.
        """
        with self._lock:
            self._check_own()
            shape, held = self._held[number]
            if isinstance(held, np.ndarray):
                return held.copy()
            assert self._file is not None
            read = os.pread(self._file.fileno(), math.prod(shape), held)
        return np.frombuffer(bytearray(read), dtype=np.uint8).reshape(shape)

    def _check_own(self) -> None:
        if self._is_of_parent:
            raise FramesOfParent(
                "frames on disk belong to the process that kept them, not to its forked child: reset() to begin anew "
                "here, or keep frames that a child needs in memory (use_disk_cache=False)"
            )

    def keep(self, numbers: set[int]) -> None:
        """Free all frames but these."""
        with self._lock:
            self._held = {number: held for number, held in self._held.items() if number in numbers}
            if self._file is not None and not self._held:
                self._file.close()
                self._file, self._is_of_parent = None, False

    def clear(self) -> None:
        """Free all frames."""
        self.keep(set())


_ALL: weakref.WeakSet[FrameFiles] = weakref.WeakSet()


def _note_fork() -> None:
    for files in _ALL:
        files._is_of_parent = files._file is not None


os.register_at_fork(after_in_child=_note_fork)
