"""Rows `endless-memory` and `endless-pace`: a stream that evicts, at its beginning and after thousands of chunks."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.store.report import Line, Row
from benchmarks.store.timing import median
from benchmarks.streaming.scale import Scale
from benchmarks.streaming.streams import chunk_of, new_stream
from consumers.streaming import EvictionConfig
from consumers.streaming.reports.meter import Meter

MOST_GROWTH = 1.02
_PARTS = 10
_PICTURES = 16  # different chunks, over and over


def measure(_folder: Path, scale: Scale) -> list[Row]:
    """Both rows, from one stream.

    Raises:
        RuntimeError: the cache grew beyond its limit.
    """
    stream = new_stream(scale, EvictionConfig(scale.evict_at))
    chunks = [chunk_of(scale, number) for number in range(_PICTURES)]
    meter, part = Meter(torch.device(scale.device)), scale.chunks // _PARTS
    peaks, paces = [], []
    meter.begin()
    for number in range(_PARTS):
        taken_s = []
        for index in range(part):
            chunk = chunks[index % _PICTURES]
            taken_s.append(meter.timed(lambda frames=chunk: stream.append_video_chunk(frames))[1])  # type: ignore[misc]
        peaks.append(meter.baseline_bytes + meter.peak_bytes())
        paces.append(median(taken_s))
        if stream.get_cache_info()["cache_seq_length"] > scale.evict_at:
            raise RuntimeError(f"{stream.get_cache_info()} after part {number}, allowed are {scale.evict_at} tokens")
    stats = stream.get_cache_info()["eviction_stats"]
    names = [f"first {part:,} chunks", f"last {part:,} of {scale.chunks:,} chunks"]
    memory = [
        Line(name, peak / 1e6, peak / peaks[0], most_ratio=most)
        for name, peak, most in zip(names, (peaks[0], peaks[-1]), (None, MOST_GROWTH), strict=True)
    ]
    pace = [Line(name, pace * 1e3, pace / paces[0]) for name, pace in zip(names, (paces[0], paces[-1]), strict=True)]
    evicted = f"At most {scale.evict_at:,} tokens are kept; {stats['chunks_evicted']:,} chunks were evicted."
    counted = f"Memory is {meter.memory_counted}, the most so far."
    return [
        Row("endless-memory", "memory of an endless stream", "MB", memory, [evicted, counted]),
        Row("endless-pace", "append a chunk to an endless stream", "ms", pace, ["Median of its part."]),
    ]
