"""The version of this distribution, the one place that names it, and of those that it stands on."""

from __future__ import annotations

from functools import cache
from importlib import metadata

VERSION = "0.1.0"
NOT_INSTALLED = "not installed"


@cache
def version_of(distribution: str) -> str:
    """Return a distribution's version, or `NOT_INSTALLED`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED
