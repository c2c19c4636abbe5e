"""Everything that cached evaluation raises on purpose, beside the store's own errors.

EvaluationError
├── NoVisionTower     the model has no tower that a cache can stand in for
├── FeatureMissing    the store has no feature that fits, and a miss is not to be computed live
├── FeatureUnfit      the stored feature cannot be what this tower would give: its shape, rows or dtype
├── CacheBypassed     the model was given stand-in pixels and never asked the tower
└── EchoDifference    a feature computed again is not the stored one
"""

from __future__ import annotations


class EvaluationError(Exception):
    """Root of every error of this package."""


class NoVisionTower(EvaluationError):
    """The model has no tower that a cache can stand in for."""


class FeatureMissing(EvaluationError, LookupError):
    """The store has no feature that fits, and misses are not to be computed live."""


class FeatureUnfit(EvaluationError):
    """The stored feature cannot be what this tower would give."""


class CacheBypassed(EvaluationError):
    """The model was given stand-in pixels and never asked the tower: its answer is about nothing."""


class EchoDifference(EvaluationError):
    """A feature that was computed again is not the stored one. `video_id` names it."""

    def __init__(self, video_id: str, what: str) -> None:
        super().__init__(video_id, what)
        self.video_id, self.what = video_id, what

    def __str__(self) -> str:
        return (
            f"{self.video_id}: the live tower does not give the stored feature: {self.what}; compare versions, device, "
            "attention and decoder with what `vlm-cache show` says of it"
        )
