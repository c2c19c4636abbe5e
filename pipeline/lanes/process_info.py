"""Where a process of a lane came up."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import ray

from pipeline.lanes.oom_killer import oom_kills


@dataclass(frozen=True)
class ProcessInfo:
    """Where a process of a lane came up."""

    node_id: str
    host: str
    device: str
    oom_kills: int | None  # there, so far; None where the kernel does not tell


def process_info(device: str) -> ProcessInfo:
    """Describe the calling process."""
    return ProcessInfo(ray.get_runtime_context().get_node_id(), socket.gethostname(), device, oom_kills())
