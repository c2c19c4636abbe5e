"""How long one unit may take in each stage before it counts as hanging."""

from __future__ import annotations

from dataclasses import dataclass

# The process names a hanging unit by itself within this; else its driver ends it.
GRACE_S = 30.0


@dataclass(frozen=True)
class TimeLimits:
    """Wall-clock limits of one unit in one stage, in seconds."""

    decode_s: float = 600.0
    encode_s: float = 1800.0
    write_s: float = 600.0

    def of(self, kind: str) -> float:
        """Return how long a process of `kind` may go without a result before it is ended from outside."""
        return self.decode_s if kind == "decode" else self.encode_s + self.write_s + GRACE_S
