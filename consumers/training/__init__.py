"""Reading features for training."""

from consumers.training.feature_dataset import FeatureDataset, FeatureMissing

__all__ = ["FeatureDataset", "FeatureMissing"]
