"""How often a cached evaluation found its features, and what that cost, counted over all threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

_RULE = "=" * 60


@dataclass
class CacheStatistics:
    """Counts of requests. One request is one use of the tower, whatever it holds."""

    hits: int = 0
    misses: int = 0
    echoes: int = 0  # hits that were computed live as well
    echo_differences: int = 0  # of these, with other bits
    read_s: float = 0.0  # from the store
    live_s: float = 0.0  # in the live tower: misses and echoes
    pixels_s: float = 0.0  # decoding and preprocessing for these
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to fields by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def seconds(self) -> dict[str, float]:
        """Return the seconds by stage."""
        return {"pixels_s": self.pixels_s, "tower_s": self.live_s, "read_s": self.read_s}

    @property
    def hit_rate(self) -> float:
        """Share of hits, 0 to 1; 0 before any request."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    def block(self) -> str:
        """Return the block that the earlier scripts printed at their end; with echoes it has a line more."""
        # Cut off instead of rounded: 100.0% means that nothing missed.
        percent = int(self.hit_rate * 1000) / 10
        lines = [
            _RULE,
            "Vision Cache Statistics",
            _RULE,
            f"Cache hits: {self.hits}",
            f"Cache misses: {self.misses}",
            f"Hit rate: {percent:.1f}%",
        ]
        if self.echoes:
            lines.append(f"Echo checks: {self.echoes}, with differences: {self.echo_differences}")
        return "\n".join([*lines, _RULE])
