"""Evaluation with a vision cache in front of the model's tower: the same answers, without decoding and encoding."""

from consumers.evaluation.cached_tower import CachedVisionTower, Request
from consumers.evaluation.encoder_outputs import CachedEncoderOutputs
from consumers.evaluation.errors import (
    CacheBypassed,
    EchoDifference,
    EvaluationError,
    FeatureMissing,
    FeatureUnfit,
    NoVisionTower,
)
from consumers.evaluation.longva import LongVA_Cached
from consumers.evaluation.statistics import CacheStatistics

__all__ = [
    "CacheBypassed",
    "CacheStatistics",
    "CachedEncoderOutputs",
    "CachedVisionTower",
    "EchoDifference",
    "EvaluationError",
    "FeatureMissing",
    "FeatureUnfit",
    "LongVA_Cached",
    "NoVisionTower",
    "Request",
]
