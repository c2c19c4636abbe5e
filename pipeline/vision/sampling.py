"""Which frames of a video are encoded: the five rules of contract 3, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Whether a damaged video may give fewer frames than the rule chose.
PartialFrames = Literal["refuse", "allow"]

NAMED_RULES = ("source", "longva", "lmms-eval-pyav", "vlmevalkit")


@dataclass(frozen=True)
class SamplingRule:
    """One rule. Made by `SamplingRule.parse`; equal rules have equal names."""

    name: str  # what --sampling takes, and what the recipe records
    rate_hz: float | None = None  # frames per second, of `fps:<rate>` alone

    @classmethod
    def parse(cls, name: str) -> SamplingRule:
        """Return the rule called `name`: one of `NAMED_RULES`, or `fps:<rate>` with a rate above 0.

        `fps:1` and `fps:1.0` give equal rules.

        Raises:
            ValueError: the name is unknown, or the rate is no finite number above 0.
        """
        if name in NAMED_RULES:
            return cls(name)
        prefix, separator, rate = name.partition(":")
        if prefix == "fps" and separator:
            try:
                rate_hz = float(rate)
            except ValueError:
                rate_hz = math.nan
            if math.isfinite(rate_hz) and rate_hz > 0:
                return cls(f"fps:{rate_hz:g}", float(f"{rate_hz:g}"))
            raise ValueError(f"sampling rule {name!r}: the rate must be a number above 0, as in fps:0.5")
        raise ValueError(f"unknown sampling rule {name!r}; known: {', '.join(NAMED_RULES)}, fps:<frames per second>")

    def indices(self, num_frames: int, *, count: int, fps: float) -> list[int]:
        """Choose frame indices of a video (or clip) of `num_frames` frames at `fps` frames per second.

        Ascending, each in [0, num_frames). `longva` and `vlmevalkit` give exactly `count` indices and repeat
        some when the video is shorter; the others give at most `count`, without repeats. `fps` matters to
        `fps:<rate>` alone.

        Raises:
            ValueError: `num_frames` or `count` is below 1, or `fps` is not above 0 where it matters.
        """
        if num_frames < 1 or count < 1:
            raise ValueError(f"need at least 1 frame and a count of at least 1, got {num_frames} and {count}")
        if self.rate_hz is not None:
            return _at_rate(num_frames, count=count, fps=fps, rate_hz=self.rate_hz)
        if self.name == "longva":
            return _evenly(num_frames, count)
        if self.name == "lmms-eval-pyav":
            return sorted(set(_evenly(num_frames, min(count, num_frames))))
        if self.name == "vlmevalkit":
            return _inner_points(num_frames, count)
        return _all_or_evenly(num_frames, count)


def _evenly(num_frames: int, count: int) -> list[int]:
    """Spread `count` indices evenly, both ends included, rounded down.

    Source: LongVA's README and lmms-eval's decord path, `np.linspace(0, total - 1, max_frames, dtype=int)`.
    """
    return [int(index) for index in np.linspace(0, num_frames - 1, count, dtype=int)]


def _all_or_evenly(num_frames: int, count: int) -> list[int]:
    """Take every frame of a video of at most `count` frames, else spread evenly.

    Source: the first LongVA cache script.
    """
    return list(range(num_frames)) if num_frames <= count else _evenly(num_frames, count)


def _inner_points(num_frames: int, count: int) -> list[int]:
    """Take the inner points of `count + 1` equal steps, rounded down; repeats in short videos.

    Source: VLMEvalKit's frame dump, `step = n / (N + 1)`, `int(i * step)` for i = 1..N.
    """
    step = num_frames / (count + 1)
    return [int(i * step) for i in range(1, count + 1)]


def _at_rate(num_frames: int, *, count: int, fps: float, rate_hz: float) -> list[int]:
    """Take `rate_hz` frames a second from the first frame on, at least one; beyond `count`, spread `count` evenly.

    With d = num_frames / fps seconds and k = int(d * rate_hz) frames, the indices are int(i * fps / rate_hz)
    for i = 0..k-1. A rate of at least `fps` takes every frame once. When k exceeds `count`, the cap is
    uniform: the indices are those of `_evenly(num_frames, count)`, so the whole video stays covered.

    Source: VLMEvalKit's fps option; the cap is ours.
    """
    if not fps > 0:
        raise ValueError(f"sampling by frames per second needs the video's rate, got {fps}")
    if rate_hz >= fps:
        return _all_or_evenly(num_frames, count)
    wanted = max(1, int(num_frames / fps * rate_hz))
    if wanted > count:
        return _evenly(num_frames, count)
    step = fps / rate_hz
    return [int(i * step) for i in range(wanted)]
