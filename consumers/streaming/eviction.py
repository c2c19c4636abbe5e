"""Bounded memory for endless streams: the first tokens and the most recent chunks stay, whole chunks go."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from consumers.numeric_options import require_whole_numbers
from consumers.streaming.errors import ContextTooLong


@dataclass(frozen=True)
class EvictionConfig:
    """How many tokens a stream keeps. All sizes in tokens.

    Before a chunk is appended that would not fit into `max_cache_tokens`, or into the context if that is smaller, the
    oldest chunks are dropped until it and what is kept fit into `window_size`. Tokens before the first frame are never
    dropped, nor are chunks that lie within the first `sink_size` tokens; the one that only begins there stays where the
    new chunk fits beside it. `window_size` 0: all that the limit leaves beside the sinks; a smaller one drops more at
    once, and less often. With `eviction_interval` n only every n-th chunk is checked, so the cache may pass
    `max_cache_tokens` by n - 1 chunks, but never the context. A kept question and answer count as a chunk and are never
    checked themselves: those in a row may pass `max_cache_tokens` together, until a chunk of frames is checked. What is
    kept keeps its positions, bit for bit.
    """

    max_cache_tokens: int
    sink_size: int = 0
    window_size: int = 0
    eviction_interval: int = 1

    def __post_init__(self) -> None:
        require_whole_numbers(**vars(self))
        if self.max_cache_tokens < 1 or self.eviction_interval < 1 or min(self.sink_size, self.window_size) < 0:
            raise ValueError(f"sizes must be positive (sink_size and window_size may be 0): {self}")
        if self.sink_size + self.window_size > self.max_cache_tokens:
            raise ValueError(f"sink_size and window_size together are more than max_cache_tokens: {self}")


class ChunkLedger:
    """Which chunks a cache holds, in order, and which leave it next."""

    def __init__(self, config: EvictionConfig | None, context_tokens: int) -> None:
        self._config, self._context = config, context_tokens
        self._limit = min(config.max_cache_tokens, context_tokens) if config else context_tokens
        self.clear()

    def clear(self) -> None:
        """Forget all chunks and figures."""
        self._lengths: list[int] = []  # of the chunks in the cache; the first is the text before the first frame
        self._unchecked = 0  # chunks since the last one that was checked
        self._peak_tokens = 0
        self._evictions = self._chunks_evicted = self._tokens_evicted = 0

    def copy(self) -> ChunkLedger:
        """Return a ledger of the same chunks and figures that goes on on its own."""
        twin = copy.copy(self)
        twin._lengths = list(self._lengths)
        return twin

    def append(self, tokens: int, *, before_first: int = 0) -> None:
        """Count a chunk that was appended after `spans_to_keep` was asked, and the text before the first one."""
        self._unchecked = 0 if self._is_due() else self._unchecked + 1
        self._count([before_first, tokens] if before_first else [tokens])

    def adopt(self, branch: ChunkLedger, tokens: int) -> None:
        """Count what brings the cache to `tokens` without a check: a question and its answer, and before it what
        `branch` counts, as the frame that waited for its partner.
        """
        answered = tokens - sum(self._lengths) - sum(branch._lengths)
        self._unchecked += 2 if branch._lengths else 1
        self._count([*branch._lengths, answered])

    def _count(self, lengths: list[int]) -> None:
        self._lengths += lengths
        self._peak_tokens = max(self._peak_tokens, sum(self._lengths))

    def _is_due(self) -> bool:
        return self._config is not None and self._unchecked >= self._config.eviction_interval - 1

    def spans_to_keep(self, new_tokens: int) -> list[tuple[int, int]] | None:
        """Return the token spans [start, end) that stay when a chunk of `new_tokens` comes; None if all stay.

        Raises:
            ContextTooLong: the chunk does not fit beside the sinks.
        """
        dropped = self._dropped(new_tokens)
        if dropped is None:
            return None
        first, last = dropped
        sink = sum(self._lengths[:first])
        spans = [(0, sink), (sink + sum(self._lengths[first:last]), sum(self._lengths))]
        return [span for span in spans if span[0] < span[1]]

    def drop(self, new_tokens: int) -> None:
        """Count what `spans_to_keep` left out as gone."""
        dropped = self._dropped(new_tokens)
        if dropped is not None:
            first, last = dropped
            self._evictions += 1
            self._chunks_evicted += last - first
            self._tokens_evicted += sum(self._lengths[first:last])
            del self._lengths[first:last]

    def _dropped(self, new_tokens: int) -> tuple[int, int] | None:
        """The chunks [first, last) that leave the cache before one of `new_tokens` comes."""
        config = self._config
        if config is None:
            return None
        first = self._sinks(config, new_tokens)
        sink = sum(self._lengths[:first])
        if sink + new_tokens > self._limit:
            raise ContextTooLong("the chunk and the sinks before it", sink + new_tokens, self._limit)
        held = sum(self._lengths)
        most = self._limit if self._is_due() else self._context
        if held + new_tokens <= most:
            return None
        window = min(config.window_size or self._limit, self._limit - sink)
        last, kept = first, held - sink
        while last < len(self._lengths) and kept + new_tokens > window:
            kept -= self._lengths[last]
            last += 1
        return (first, last) if last > first else None

    def _sinks(self, config: EvictionConfig, new_tokens: int) -> int:
        start, count = 0, 0
        for length in self._lengths:
            end = start + length
            is_rounded_up = start < config.sink_size and end + new_tokens <= self._limit
            if count and end > config.sink_size and not is_rounded_up:
                break
            start, count = end, count + 1
        return count

    def stats(self) -> dict[str, int] | None:
        """Return the figures of `get_cache_info`; None without eviction."""
        if self._config is None:
            return None
        return {
            "max_cache_tokens": self._config.max_cache_tokens,
            "chunks_kept": len(self._lengths),
            "evictions": self._evictions,
            "chunks_evicted": self._chunks_evicted,
            "tokens_evicted": self._tokens_evicted,
            "peak_tokens": self._peak_tokens,
        }
