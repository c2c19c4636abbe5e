"""Reading features for training."""

from consumers.training.collate import EmptyBatch, unified_collate_fn
from consumers.training.feature_dataset import FeatureDataset
from consumers.training.feature_reader import FeatureMissing
from consumers.training.lerobot_features import CachedLeRobot
from consumers.training.loader import create_unified_dataloader
from consumers.training.preflight import CacheIncomplete, Preflight
from consumers.training.sampler import ResumableSampler
from consumers.training.vla_dataset import UnifiedVLADataset
from consumers.training.vla_episodes import VLAEpisodeSet

__all__ = [
    "CacheIncomplete",
    "CachedLeRobot",
    "EmptyBatch",
    "FeatureDataset",
    "FeatureMissing",
    "Preflight",
    "ResumableSampler",
    "UnifiedVLADataset",
    "VLAEpisodeSet",
    "create_unified_dataloader",
    "unified_collate_fn",
]
