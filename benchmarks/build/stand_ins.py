"""Lets the device stage and the writer be imported on a machine without Ray or PyAV: neither is used by them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def prepare() -> list[str]:
    """Put empty modules where a missing library would be imported; returns the names of what is missing.

    `pipeline.lanes` imports the scheduler, and so Ray, as soon as any of its modules is imported: without Ray it
    becomes a package with the same modules and an empty `__init__`. Without PyAV nothing can be decoded,
    so `pipeline.vision.decoding` is empty too.
    """
    missing = [name for name in ("ray", "av") if find_spec(name) is None]
    if "ray" in missing and "pipeline.lanes" not in sys.modules:
        lanes = ModuleType("pipeline.lanes")
        lanes.__path__ = [str(Path(__file__).parents[2] / "pipeline" / "lanes")]
        sys.modules["pipeline.lanes"] = lanes
    if "av" in missing:
        sys.modules["av"] = ModuleType("av")
        decoding = ModuleType("pipeline.vision.decoding")
        vars(decoding).update(DecodedVideo=None, decode_cuts=None, decode_frame=None)
        sys.modules[decoding.__name__] = decoding
    return missing
