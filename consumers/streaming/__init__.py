"""Streaming inference on Qwen2.5-VL: a video in a KV cache, questions beside it."""

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.errors import (
    ContextTooLong,
    ForkedAmidChange,
    FrameSizeChanged,
    FramesOfParent,
    NoFrames,
    NonFiniteLogits,
    NoSnapshot,
    StreamBusy,
    StreamError,
    TimeRunsBackwards,
    UnsupportedCache,
    WeightsChanged,
)
from consumers.streaming.eviction import EvictionConfig
from consumers.streaming.frame_memory import SmartFrameManager
from consumers.streaming.kv_cache import KVCacheManager
from consumers.streaming.last_n import LastNFramesEngine
from consumers.streaming.qwen_model import StreamProcessor, StreamQwenModel, load_streaming_model
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper
from consumers.streaming.video_sampler import VideoSampler

__all__ = [
    "ContextTooLong",
    "DelayedBatchInferenceEngine",
    "EvictionConfig",
    "ForkedAmidChange",
    "FrameSizeChanged",
    "FramesOfParent",
    "KVCacheManager",
    "LastNFramesEngine",
    "NoFrames",
    "NoSnapshot",
    "NonFiniteLogits",
    "QwenInferenceWrapper",
    "SmartFrameManager",
    "StreamBusy",
    "StreamError",
    "StreamProcessor",
    "StreamQwenModel",
    "TimeRunsBackwards",
    "UnsupportedCache",
    "VideoSampler",
    "VideoStreamingInference",
    "WeightsChanged",
    "load_streaming_model",
]
