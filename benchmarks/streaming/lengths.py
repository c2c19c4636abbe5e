"""Rows `append` and `ask`: a chunk of frames and a question's first token over the length of the stream."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store.report import Row, lines_of
from benchmarks.store.timing import Contestant, interleaved_s
from benchmarks.streaming.scale import Scale
from benchmarks.streaming.streams import chunk_of, grown, repeated, waiting

QUESTION = "What happens in this video?"


def measure(_folder: Path, scale: Scale) -> list[Row]:
    """Both rows; the streams take turns."""
    streams = {tokens: grown(scale, tokens) for tokens in scale.stream_tokens}
    chunk = chunk_of(scale)
    asking = [
        Contestant(
            f"stream of {tokens:,} tokens",
            scale.repeats,
            waiting(scale.device, repeated(scale.repeats, lambda asked=stream: asked.ask(QUESTION, 1))),  # type: ignore[misc]
        )
        for tokens, stream in streams.items()
    ]
    appending = [
        Contestant(
            f"stream of {tokens:,} tokens",
            scale.repeats,
            waiting(scale.device, repeated(scale.repeats, lambda grows=stream: grows.append_video_chunk(chunk))),  # type: ignore[misc]
        )
        for tokens, stream in streams.items()
    ]
    base = asking[0].name
    asked_s = interleaved_s(asking, rounds=scale.rounds)
    appended_s = interleaved_s(appending, rounds=scale.rounds)
    what = f"{scale.chunk_frames} frames of {scale.side}x{scale.side} pixels"
    return [
        Row(
            "append",
            f"append {what}",
            "ms",
            lines_of(appending, appended_s, base=base, unit_s=1e-3),
            ["Vision tower and prefill; each layer's keys and values are copied into longer ones."],
        ),
        Row(
            "ask",
            "a question's first token",
            "ms",
            lines_of(asking, asked_s, base=base, unit_s=1e-3),
            [f"{QUESTION!r}, on a branch; the video is not encoded again."],
        ),
    ]
