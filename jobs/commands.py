"""From a parsed command to the function that does it, and the errors that mean "refused"."""

from __future__ import annotations

import argparse
from importlib import import_module

from cache_store import CacheStoreError
from pipeline.errors import BuildRefused, PipelineError

# What a person can mend by asking differently; anything else is a fault of ours and keeps its traceback.
REFUSALS = (PipelineError, CacheStoreError)

# Imported when called, because a reading install has neither ray nor decoders and still looks after its stores.
_MODULES = {
    "plan": "jobs.plan_command",
    "build": "jobs.build_command",
    "retry-failed": "jobs.retry_command",
    "report": "jobs.report_command",
    "check": "jobs.check_command",
    "evaluate": "jobs.evaluate_command",
    "demo": "jobs.demo_command",
    "stats": "jobs.stats_command",
    "ls": "jobs.listing_commands",
    "show": "jobs.listing_commands",
    "verify": "jobs.upkeep_commands",
    "prune": "jobs.upkeep_commands",
    "pin": "jobs.upkeep_commands",
    "clear": "jobs.upkeep_commands",
    "migrate": "jobs.migrate_command",
    "pack": "jobs.pack_command",
    "unpack": "jobs.pack_command",
}
# Packages that a reading install lacks, by the extra that brings them.
_EXTRA_OF = {
    **dict.fromkeys(("ray", "transformers", "av", "PIL", "safetensors"), "build"),
    **dict.fromkeys(("matplotlib", "openpyxl"), "evaluate"),
}


def command(args: argparse.Namespace) -> int:
    """Run the command that `args.command` names; returns its exit status.

    Raises:
        BuildRefused: the command needs packages of an extra that are not installed.
    """
    try:
        module = import_module(_MODULES[args.command])
    except ModuleNotFoundError as exc:
        extra = _EXTRA_OF.get(exc.name or "")
        if extra is None:
            raise
        raise BuildRefused(f"the package {exc.name} is not installed; pip install 'vlm-cache[{extra}]'") from exc
    status: int = getattr(module, args.command.replace("-", "_"))(args)
    return status
