"""Plain system calls: the least that reading or writing the same bytes can cost."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks.store.features import bytes_of


class PackedFile:
    """Features of one size behind each other in one open file, read into one reused buffer."""

    def __init__(self, path: Path, features: torch.Tensor) -> None:
        path.write_bytes(bytes_of(features))
        self.feature = torch.empty_like(features[0])
        self._bytes = self.feature.numel() * self.feature.element_size()
        self._buffers = [bytes_of(self.feature)]
        self._fd = os.open(path, os.O_RDONLY)

    def read(self, index: int) -> torch.Tensor:
        os.preadv(self._fd, self._buffers, index * self._bytes)
        return self.feature

    def close(self) -> None:
        os.close(self._fd)


class RawFiles:
    """One file per feature with nothing but its bytes; read into one reused buffer."""

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = str(folder)
        self.feature = torch.empty_like(like)
        self._buffers = [bytes_of(self.feature)]

    def write(self, index: int, content: bytes | memoryview) -> None:
        fd = os.open(f"{self._folder}/{index}.raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.write(fd, content)
        os.close(fd)

    def write_renamed(self, index: int, content: bytes | memoryview) -> None:
        temp = f"{self._folder}/{index}.tmp"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.write(fd, content)
        os.close(fd)
        os.rename(temp, f"{self._folder}/{index}.renamed")

    def write_flushed(self, index: int, content: bytes | memoryview) -> None:
        fd = os.open(f"{self._folder}/{index}.flushed", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.write(fd, content)
        os.fsync(fd)
        os.close(fd)

    def unlink(self, index: int) -> None:
        os.unlink(f"{self._folder}/{index}.raw")

    def read(self, index: int) -> torch.Tensor:
        fd = os.open(f"{self._folder}/{index}.raw", os.O_RDONLY | os.O_CLOEXEC)
        os.readv(fd, self._buffers)
        os.close(fd)
        return self.feature
