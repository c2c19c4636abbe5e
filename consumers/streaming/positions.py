"""mRoPE position ids of a stream, from absolute frame indices or true times.

Every token has three ids: time, row, column. A text token's three are equal and count upwards. The tokens of a video
that begins at position `start` have `start` + row, `start` + column, and `start` + the time of their frames in ticks of
1 / tokens_per_second seconds, rounded down. Rounding comes last, on the absolute time: rounding chunk by chunk would
lose the fractions. transformers works the ids of an appended chunk out from the cache's length, which is wrong; so they
are passed explicitly, always.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

TextRule = Literal["spatial", "maximum"]


def tick_of_frame(frame: int, *, fps: float, tokens_per_second: float) -> int:
    """Return the time of frame `frame` (from 0) of a video of `fps` frames per second, in ticks from its start.

    In float32, as transformers computes it for the frame that begins a group of frames.
    """
    return int((torch.tensor(frame) * torch.tensor(tokens_per_second / fps, dtype=torch.float32)).long())


def tick_of_time(time_s: float, *, tokens_per_second: float) -> int:
    """Return a time from the video's start in ticks, rounded down; what is a millionth short of a tick is that tick."""
    return math.floor(time_s * tokens_per_second + 1e-6)


def vision_positions(start: int, ticks: list[int], *, rows: int, columns: int) -> torch.Tensor:
    """Return the ids, int64 [3, len(ticks) * rows * columns], of groups of frames at `ticks`, row by row.

    `start` is where the video that they belong to began; `rows` and `columns` count tokens, not patches.
    """
    time = torch.tensor(ticks, dtype=torch.long) + start
    grid = torch.meshgrid(time, torch.arange(rows) + start, torch.arange(columns) + start, indexing="ij")
    return torch.stack(grid).reshape(3, -1)


def text_positions(start: int, count: int) -> torch.Tensor:
    """Return the ids, int64 [3, count], of text that begins at `start`."""
    return (torch.arange(count) + start).expand(3, -1)


def text_start_after_video(start: int, last_tick: int, *, rows: int, columns: int, rule: TextRule) -> int:
    """Return the position of the first text token after a video that began at `start`.

    `spatial`: one edge after the video's start, as transformers does since 5.3, however long the video is. `maximum`:
    one after the video's largest id, as Qwen's own code and transformers up to 5.2 do. They agree until the video has
    more ticks than its longer edge has tokens.
    """
    if rule == "spatial":
        return start + max(rows, columns)
    return start + max(last_tick, rows - 1, columns - 1) + 1
