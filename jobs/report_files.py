"""A report's folder: tried before the work that it will tell of, and filled when the figures are there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from cache_store import StoreWriteError
from cache_store.atomic import publish
from jobs.printing import notes
from pipeline.errors import BuildRefused


def make_report_folder(folder: Path) -> None:
    """Make a report's folder, before minutes of work that it could not hold. Raises BuildRefused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # whether a file can be made there
            pass
    except OSError as exc:
        raise BuildRefused(f"--report {folder}: {exc.strerror or exc}") from exc


def write_files(folder: Path, texts: Mapping[str, str], *, instead_of: str | None = None) -> bool:
    """Write texts as files of these names, each whole or not at all, and return whether all are there.

    Then files of an earlier report there go, those that match the pattern `instead_of` and are not among `texts`. Where
    the system refuses, stderr says so and nothing is raised: what was measured is still to be printed.
    """
    try:
        for name, text in texts.items():
            publish([text.encode("utf-8", "backslashreplace")], folder / name)
        for old in [] if instead_of is None else folder.glob(instead_of):
            if old.name not in texts:
                old.unlink()
    except (StoreWriteError, OSError) as exc:
        notes().print(f"the report is not whole: {exc}", markup=False, soft_wrap=True)
        return False
    return True
