"""A report's folder: tried before the work that it will tell of, and filled when the figures are there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cache_store import StoreWriteError
from cache_store.atomic import publish
from jobs.printing import notes
from pipeline.errors import BuildRefused


def new_folder(parent: Path, name: str) -> Path:
    """Make a folder below `parent`, named by `name` and the time, and numbered where this second has one.

    Raises:
        BuildRefused: it cannot be made.
    """
    stamp = f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = parent / (stamp if number == 1 else f"{stamp}_{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as exc:
        raise BuildRefused(f"no folder can be made in {parent}: {exc.strerror or exc}") from exc
    raise BuildRefused(f"{parent} has a thousand folders of this second")


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
