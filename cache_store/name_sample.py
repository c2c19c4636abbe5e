"""Draws some of a store's features at random: a seed gives the same ones wherever, and in whatever order, they lie."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True)
class Sample:
    """How many features to draw, and by which seed."""

    size: int
    seed: int

    @classmethod
    def of(cls, size: int | None, seed: int | None) -> Sample | None:
        """The sample that a caller asked for; without a seed it gets a random one. None: no sample, everything.

        Raises:
            ValueError: fewer than one feature, or a seed without a number of features.
        """
        if size is None:
            if seed is not None:
                raise ValueError("a seed draws a sample; say how many features it has")
            return None
        if size < 1:
            raise ValueError(f"a sample of {size} features checks nothing; give at least 1")
        return cls(size, secrets.randbelow(1 << 32) if seed is None else seed)

    def draw(self, names: Iterable[str]) -> frozenset[str]:
        """At most `size` of the names, each as likely as any other; memory for those alone."""
        return frozenset(heapq.nsmallest(self.size, names, key=self._place))

    def _place(self, name: str) -> bytes:
        # Undecodable bytes of a name count like any others.
        return blake2b(f"{self.seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest()
