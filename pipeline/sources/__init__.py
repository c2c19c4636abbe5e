"""What exists: samples of video folders, benchmarks and robot episodes."""

from pipeline.sources.lerobot import LeRobotV2
from pipeline.sources.open_source import SourceKind, open_source
from pipeline.sources.samples import (
    IgnoredFile,
    ImageFile,
    Sample,
    Source,
    StepSample,
    VideoFrame,
    VideoSample,
    ViewImage,
)
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.video_ids import video_id
from pipeline.sources.video_mme import VideoMME
from pipeline.sources.vla_episodes import VLAEpisodes

__all__ = [
    "IgnoredFile",
    "ImageFile",
    "LeRobotV2",
    "Sample",
    "Source",
    "SourceKind",
    "StepSample",
    "VLAEpisodes",
    "VideoFolder",
    "VideoFrame",
    "VideoMME",
    "VideoSample",
    "ViewImage",
    "open_source",
    "video_id",
]
