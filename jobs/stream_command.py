"""`vlm-cache stream`: from what follows it to the module that does it."""

from __future__ import annotations

import argparse
from importlib import import_module

from pipeline.errors import BuildRefused

# Each module's `run(args)` returns the exit status. Imported when called: the demo's packages are not the reports'.
_MODULES = {
    "compare": "jobs.stream_reports",
    "chunks": "jobs.stream_reports",
    "delayed": "jobs.stream_reports",
    "multi-round": "jobs.stream_reports",
    "capacity": "jobs.stream_reports",
    "check": "jobs.stream_reports",
    "demo": "jobs.stream_demo",
}


_STREAM_ONLY = ("transformers", "av", "PIL", "safetensors", "matplotlib")


def stream(args: argparse.Namespace) -> int:
    """Run what `args.stream_command` names; returns its exit status.

    Raises:
        BuildRefused: it needs packages of the `stream` extra that are not installed.
    """
    try:
        status: int = import_module(_MODULES[args.stream_command]).run(args)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _STREAM_ONLY:
            raise
        raise BuildRefused(f"the package {exc.name} is not installed; pip install 'vlm-cache[stream]'") from exc
    return status
