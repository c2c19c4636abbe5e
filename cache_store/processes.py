"""Who wrote a journal, and whether that process is still at work."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from dataclasses import dataclass


class _Here:
    pid = os.getpid()


HERE = _Here()  # `HERE.pid` costs a tenth of `os.getpid()`, which every read and write would call


def _note_fork() -> None:
    HERE.pid = os.getpid()


os.register_at_fork(after_in_child=_note_fork)

# A process on another host cannot be asked; its journal's age answers. Writers touch it every minute of use.
SILENT_AFTER_S = 3600.0


@dataclass(frozen=True)
class Owner:
    """One process: host, pid and the kernel's start tick, so that a reused pid is not mistaken for it."""

    host: str
    pid: int
    started: str
    run_id: str  # "" when the process takes part in no run


def this_process(run_id: str | None) -> Owner:
    """The calling process, as part of `run_id`."""
    pid = HERE.pid
    return Owner(_this_host(), pid, _start_tick(pid), run_id or "")


def is_alive(owner: Owner, *, silent_s: float) -> bool:
    """Whether the process still runs: asked of the kernel on this host, judged by `silent_s` on another."""
    if owner.host != _this_host():
        return silent_s < SILENT_AFTER_S
    started = _start_tick(owner.pid)
    if started:
        return started == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not owner.started


@functools.cache
def _this_host() -> str:
    # Containers may share a host name; a pid means something only inside one pid namespace of one boot.
    parts = [socket.gethostname() or "unknown"]
    # Without /proc the host's name alone has to do.
    with contextlib.suppress(OSError):
        parts += [os.readlink("/proc/self/ns/pid"), _boot_id()]
    return "|".join("".join(part.split()) for part in parts)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read()


def _start_tick(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat; "" where there is no such process or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name before the last ")" may itself contain spaces and brackets.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    # Fields count from 3 (state) after the name; a zombie no longer writes.
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode("ascii")
