"""What is refused before anything is loaded: a device that is not here."""

from __future__ import annotations

import torch

from pipeline.errors import BuildRefused, first_line


def check_device(name: str) -> None:
    """Refuse, with BuildRefused, a device that torch does not know or does not see."""
    try:
        kind = torch.device(name).type
    except RuntimeError as exc:
        raise BuildRefused(f"--device {name}: {first_line(exc)}") from exc
    if kind == "cuda" and not torch.cuda.is_available():
        raise BuildRefused(f"--device {name}: torch {torch.__version__} sees no GPU here")
