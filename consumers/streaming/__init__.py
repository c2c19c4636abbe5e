"""Streaming inference on Qwen2.5-VL: a video in a KV cache, questions beside it."""

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.errors import (
    ContextTooLong,
    FrameSizeChanged,
    NoFrames,
    NoSnapshot,
    StreamBusy,
    StreamError,
    TimeRunsBackwards,
    UnsupportedCache,
)
from consumers.streaming.eviction import EvictionConfig
from consumers.streaming.kv_cache import KVCacheManager
from consumers.streaming.qwen_model import StreamProcessor, StreamQwenModel, load_streaming_model

__all__ = [
    "ContextTooLong",
    "EvictionConfig",
    "FrameSizeChanged",
    "KVCacheManager",
    "NoFrames",
    "NoSnapshot",
    "StreamBusy",
    "StreamError",
    "StreamProcessor",
    "StreamQwenModel",
    "TimeRunsBackwards",
    "UnsupportedCache",
    "VideoStreamingInference",
    "load_streaming_model",
]
