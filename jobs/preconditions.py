"""What is refused before anything is loaded: a device that is not here, a report folder that cannot be made."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.errors import BuildRefused


def check_device(name: str) -> None:
    """Refuse, with BuildRefused, a device that torch does not know or does not see."""
    try:
        kind = torch.device(name).type
    except RuntimeError as exc:
        raise BuildRefused(f"--device {name}: {str(exc).splitlines()[0]}") from exc
    if kind == "cuda" and not torch.cuda.is_available():
        raise BuildRefused(f"--device {name}: torch {torch.__version__} sees no GPU here")


def make_report_folder(folder: Path) -> None:
    """Make a report's folder, before minutes of work that it could not hold. Raises BuildRefused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BuildRefused(f"--report {folder}: {exc.strerror or exc}") from exc
