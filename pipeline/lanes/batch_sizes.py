"""How many frames or steps fit at once on a device that ran out of memory: learnt once, kept beside the store.

A hint: without the file the next build learns the size again.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_store import recipe_fingerprint


class BatchSizes:
    """The learnt size of one model and dtype on one kind of device."""

    def __init__(self, file: Path, encoder_recipe: Mapping[str, Any], *, device_name: str) -> None:
        # The batch that was asked for does not matter: what fits is a fact of the model and the device.
        facts = {name: fact for name, fact in encoder_recipe.items() if name not in ("frames_per_forward", "batch")}
        self._file = file
        self._name = f"{facts.get('family')} {recipe_fingerprint(facts)[:16]} {facts.get('dtype')} on {device_name}"
        self._at_once: int | None = self._kept().get(self._name)

    @property
    def at_once(self) -> int | None:
        """Frames or steps at once that are known to fit; None while memory never ran out."""
        return self._at_once

    def learn(self, at_once: int) -> None:
        """Note that `at_once` fit and more did not, here and for later builds."""
        self._at_once = at_once
        temporary = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}")
        # A store that cannot be written to is the writer's to report; the size is learnt again next time.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({**self._kept(), self._name: at_once}, indent=2) + "\n")
            os.replace(temporary, self._file)

    def _kept(self) -> dict[str, int]:
        try:
            kept = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(kept, dict):
            return {}
        return {name: size for name, size in kept.items() if isinstance(size, int) and size > 0}
