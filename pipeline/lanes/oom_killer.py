"""How often the kernel's out-of-memory killer has struck where this process runs: its victims leave no other trace."""

from __future__ import annotations

from pathlib import Path


def oom_kills(*, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int | None:
    """Return the kills since the start of this process's memory cgroup, or of the host; None where neither is told.

    A cgroup of version 2 counts in `memory.events`, one of version 1 in `memory.oom_control`, a host without cgroups
    in `vmstat`.
    """
    for file in (*_of_cgroups(cgroups, proc), proc / "vmstat"):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if counts:
            return counts[0]
    return None


def _of_cgroups(cgroups: Path, proc: Path) -> list[Path]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            files.append(cgroups / "memory" / path.lstrip("/") / "memory.oom_control")
        elif not controllers:
            files.append(cgroups / path.lstrip("/") / "memory.events")
    return files
