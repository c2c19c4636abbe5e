"""Frames from media files, sampled, decoded and preprocessed.

Only what needs neither PyAV nor Pillow is imported here, because readers of a cache need the sampling rules and have
neither: decoding is imported from `pipeline.vision.decoding`, `images` and `preprocessing`.
"""

from pipeline.vision.sampling import PartialFrames, SamplingRule

__all__ = ["PartialFrames", "SamplingRule"]
