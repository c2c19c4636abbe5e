"""Encoder families: specs without weights, and the models that they load."""

from pipeline.encoders.base import (
    EncoderSpec,
    ImagePreprocess,
    StepEncoder,
    StepEncoderSpec,
    StepInput,
    VideoEncoder,
    VideoEncoderSpec,
    VideoPreprocess,
)
from pipeline.encoders.families import FAMILIES, load_spec

__all__ = [
    "FAMILIES",
    "EncoderSpec",
    "ImagePreprocess",
    "StepEncoder",
    "StepEncoderSpec",
    "StepInput",
    "VideoEncoder",
    "VideoEncoderSpec",
    "VideoPreprocess",
    "load_spec",
]
