"""One conversation about a video as a token sequence in a KV cache: what is appended, and at which positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from consumers.numeric_options import require_whole_numbers
from consumers.streaming.errors import ContextTooLong
from consumers.streaming.eviction import ChunkLedger, EvictionConfig
from consumers.streaming.kv_cache import KVCacheManager
from consumers.streaming.positions import (
    TextRule,
    text_positions,
    text_start_after_video,
    vision_positions,
)
from consumers.streaming.prompts import (
    ASSISTANT,
    END_OF_TURN,
    SYSTEM_PROMPT,
    USER,
    VISION_END,
    VISION_START,
    checked_text,
    system_turn,
)
from consumers.streaming.qwen_runner import QwenRunner
from consumers.words import require_one_of

Wrapping = Literal["turns", "continuous"]


class VideoSequence:
    """`wrapping="turns"`: each chunk is a user turn with a video of its own. `"continuous"`: all chunks between two
    answers that were kept are one video in one user turn, which stays open; a question closes it on its own branch.

    Errors leave the sequence as it was, but for chunks evicted before an append that ran out of memory.
    """

    def __init__(
        self,
        runner: QwenRunner,
        *,
        wrapping: Wrapping,
        text_after_video: TextRule,
        eviction: EvictionConfig | None = None,
        max_context_tokens: int | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        require_one_of(Wrapping, wrapping=wrapping)
        require_one_of(TextRule, text_after_video=text_after_video)
        self.max_tokens = runner.longest_context if max_context_tokens is None else max_context_tokens
        require_whole_numbers(max_context_tokens=self.max_tokens)
        if self.max_tokens < 1:
            raise ValueError(f"max_context_tokens must be at least 1, got {max_context_tokens}")
        self.runner, self.manager, self.ledger = runner, KVCacheManager(), ChunkLedger(eviction, self.max_tokens)
        self._wrapping, self._rule = wrapping, text_after_video
        self.system_prompt = checked_text(system_prompt, "system_prompt")
        self._video_start: int | None = None  # the open video's position

    @property
    def is_video_open(self) -> bool:
        """Whether the next chunk goes on with the video of the last one."""
        return self._video_start is not None

    def append_video(
        self, features: torch.Tensor, ticks: list[int], *, rows: int, columns: int, text: str = ""
    ) -> torch.Tensor:
        """Append groups of frames, and in a turn of their own `text` after them; returns the last token's logits.

        Args:
            features: [len(ticks) * rows * columns, width].
            ticks: each group's time from its video's start; see `positions`.

        Raises:
            ContextTooLong: they do not fit into the context, or not into what eviction allows.
        """
        runner, manager = self.runner, self.manager
        is_continuous = self._wrapping == "continuous"
        system = runner.ids("" if manager.tokens_seen else system_turn(self.system_prompt))
        opening = runner.ids("" if self.is_video_open else USER + VISION_START)
        head = torch.cat([system, opening])
        tail = runner.ids("" if is_continuous else VISION_END + text + END_OF_TURN)
        self._make_room(len(head) + len(features) + len(tail))

        start = manager.next_position + len(head) if self._video_start is None else self._video_start
        after = text_start_after_video(start, ticks[-1], rows=rows, columns=columns, rule=self._rule)
        positions = [
            text_positions(manager.next_position, len(head)),
            vision_positions(start, ticks, rows=rows, columns=columns),
            text_positions(after, len(tail)),
        ]
        embedded = [runner.embed(head), features.to(runner.device, runner.model.dtype), runner.embed(tail)]
        sink = len(system) and (len(head) if is_continuous else len(system))
        with self._undone_on_error():
            logits = runner.extend(
                manager, torch.cat(embedded)[None], torch.cat(positions, dim=1), next_position=after + len(tail)
            )
            self._video_start = start if is_continuous else None
            self.ledger.append(len(head) - sink + len(features) + len(tail), before_first=sink)
        return logits[0, -1]

    def _make_room(self, new_tokens: int) -> None:
        spans = self.ledger.spans_to_keep(new_tokens)
        if spans is None:
            self.check_fits(new_tokens, "the stream with this chunk")
            return
        with self._undone_on_error():
            self.manager.keep_tokens(spans)
            self.ledger.drop(new_tokens)

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Cache, positions and ledger change together or, after any error or interrupt, not at all."""
        manager, cache, held = self.manager, self.manager.cache, self.manager.get_seq_length()
        ledger, counters = self.ledger, (manager.next_position, manager.tokens_seen, self._video_start)
        self.ledger = ledger.copy()
        try:
            yield
        except BaseException:
            manager.cache = cache
            manager.cut_back(held)
            self.ledger, (manager.next_position, manager.tokens_seen, self._video_start) = ledger, counters
            raise

    def branch(self, *, is_evicting: bool = False) -> VideoSequence:
        """Return a sequence that goes on from here on its own; nothing is copied.

        It evicts nothing or, with `is_evicting`, what this one would.
        """
        twin = VideoSequence(
            self.runner,
            wrapping=self._wrapping,
            text_after_video=self._rule,
            max_context_tokens=self.max_tokens,
            system_prompt=self.system_prompt,
        )
        twin.manager, twin._video_start = self.manager.branch(), self._video_start
        if is_evicting:
            twin.ledger = self.ledger.copy()
        return twin

    def question_ids(self, question: str) -> torch.Tensor:
        """Return the ids of a question here and of the answer's opening: what a branch is to be extended by."""
        opening = VISION_END if self.is_video_open else USER
        return self.runner.ids(opening + question + END_OF_TURN + ASSISTANT)

    def check_fits(self, tokens: int, what: str) -> None:
        """Check that `tokens` more fit into the context.

        Raises:
            ContextTooLong: they do not.
        """
        total = self.manager.get_seq_length() + tokens
        if total > self.max_tokens:
            raise ContextTooLong(what, total, self.max_tokens)

    def adopt(self, branch: VideoSequence) -> None:
        """Go on from where `branch`, made from here, is: its question and answer become part of the sequence."""
        ledger = self.ledger.copy()
        ledger.adopt(branch.ledger, branch.manager.get_seq_length())
        self.manager, self.ledger, self._video_start = branch.manager, ledger, None

    def clear(self) -> None:
        """Forget everything."""
        self.manager.clear()
        self.ledger.clear()
        self._video_start = None
