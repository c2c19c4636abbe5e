"""What exists: samples of video folders, benchmarks and robot episodes."""

from pipeline.sources.benchmark import Benchmark
from pipeline.sources.benchmarks import BENCHMARKS
from pipeline.sources.choices import Choices
from pipeline.sources.fetched_media import FETCH_LIMIT_BYTES, localise
from pipeline.sources.lerobot import LeRobot, lerobot_episode_name
from pipeline.sources.media_path import MediaPath, UrlPath, absolute, data_set_name, parse_media_path
from pipeline.sources.open_source import STEP_SOURCES, VIDEO_SOURCES, open_source
from pipeline.sources.question_table import write_questions
from pipeline.sources.samples import (
    IgnoredFile,
    ImageFile,
    Question,
    Sample,
    Source,
    StepSample,
    VideoFrame,
    VideoSample,
    ViewImage,
)
from pipeline.sources.step_batches import StepBatches
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.video_ids import clip_suffix, video_id
from pipeline.sources.vla_episodes import VLAEpisodes

__all__ = [
    "BENCHMARKS",
    "FETCH_LIMIT_BYTES",
    "STEP_SOURCES",
    "VIDEO_SOURCES",
    "Benchmark",
    "Choices",
    "IgnoredFile",
    "ImageFile",
    "LeRobot",
    "MediaPath",
    "Question",
    "Sample",
    "Source",
    "StepBatches",
    "StepSample",
    "UrlPath",
    "VLAEpisodes",
    "VideoFolder",
    "VideoFrame",
    "VideoSample",
    "ViewImage",
    "absolute",
    "clip_suffix",
    "data_set_name",
    "lerobot_episode_name",
    "localise",
    "open_source",
    "parse_media_path",
    "video_id",
    "write_questions",
]
