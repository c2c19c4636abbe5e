"""Pixels of frames by number, in memory or in files without a name, lossless."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np


class FrameFiles:
    """A file without a name is freed by the system when it is closed or its process ends, killed or not."""

    def __init__(self, *, on_disk: bool) -> None:
        self._on_disk = on_disk
        self._held: dict[int, tuple[tuple[int, ...], np.ndarray | IO[bytes]]] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of all pixels held."""
        return sum(int(np.prod(shape)) for shape, _ in self._held.values())

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Keep a copy of uint8 `pixels`.

        Raises:
            OSError: the disk is full or fails; nothing is kept.
        """
        if not self._on_disk:
            self._held[number] = pixels.shape, pixels.copy()
            return
        file = tempfile.TemporaryFile(prefix="vlm-cache-frame-")  # noqa: SIM115 - open for as long as it is held
        try:
            file.write(np.ascontiguousarray(pixels).data)
            file.flush()
        except BaseException:
            file.close()
            raise
        self._held[number] = pixels.shape, file

    def get(self, number: int) -> np.ndarray:
        """Return a copy of a frame's pixels.

        Raises:
            KeyError: it is not held.
        """
        shape, held = self._held[number]
        if isinstance(held, np.ndarray):
            return held.copy()
        held.seek(0)
        return np.frombuffer(bytearray(held.read()), dtype=np.uint8).reshape(shape)

    def keep(self, numbers: set[int]) -> None:
        """Free all frames but these."""
        for number in [number for number in self._held if number not in numbers]:
            _, held = self._held.pop(number)
            if not isinstance(held, np.ndarray):
                held.close()

    def clear(self) -> None:
        """Free all frames."""
        self.keep(set())
