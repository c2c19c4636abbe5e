"""What the figures were measured on, without anything that names the machine or its owner."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from pipeline.version import version_of

_PROBES = 200
_PACKAGES = ("torch", "numpy", "safetensors", "mosaicml-streaming", "diskcache", "webdataset")


def described(folder: Path, packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Date, processor, cores, memory, kernel, file system of `folder`, versions of what was compared."""
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _file_system(folder),
        "new file": f"{_new_file_us(folder):.0f} µs",
        "huge pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    return {**facts, **{package: version_of(package) for package in packages}}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        # Not Linux: the platform's own word has to do.
        pass
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the mount that holds `folder`, as /proc/self/mounts names it."""
    wanted = folder.resolve()
    best, kind = -1, "unknown"
    try:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, found = line.split()[:3]
            # The last of several mounts on one place is the one that is seen.
            if wanted.is_relative_to(mount) and len(mount) >= best:
                best, kind = len(mount), found
    except OSError:
        pass
    return kind


def _new_file_us(folder: Path) -> float:
    """What one new empty file costs: on ext4 five times as much for minutes after many deletions as else."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start_s = time.perf_counter()
        for index in range(_PROBES):
            os.close(os.open(f"{place}/{index}", os.O_WRONLY | os.O_CREAT, 0o666))
        return (time.perf_counter() - start_s) / _PROBES * 1e6


def _chosen(path: str) -> str:
    """The word in brackets of a kernel setting such as `always [madvise] never`."""
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
