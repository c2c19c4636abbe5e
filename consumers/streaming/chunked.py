"""Streaming inference: chunks of frames go into a KV cache as they come; questions are answered on branches of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, Literal

import numpy as np
import torch

from consumers.streaming import prompts
from consumers.streaming.chunk_clock import ChunkClock
from consumers.streaming.decoding import Answer, Sampling, score_choices
from consumers.streaming.errors import NoFrames, StreamBusy, WeightsChanged
from consumers.streaming.eviction import EvictionConfig
from consumers.streaming.fork_aware_lock import ForkAwareLock
from consumers.streaming.frames import as_frame, check_order, check_size
from consumers.streaming.positions import TextRule
from consumers.streaming.qwen_runner import QwenRunner
from consumers.streaming.video_sequence import VideoSequence, Wrapping
from consumers.words import require_one_of
from pipeline.encoders.live_weights import WeightMarks

Odd = Literal["wait", "pad"]


class VideoStreamingInference:
    """A video that grows chunk by chunk, and questions about what was seen so far.

    The language model sees the chunks as `wrapping` says: `"turns"`, each a user turn with a video of its own, or
    `"continuous"`, all one video, equal to prefilling the whole video at once. `text_after_video` chooses where text
    goes after a video (`positions.text_start_after_video`). `odd` says what becomes of the last frame of an odd chunk:
    `"wait"` for its partner (a question sees it repeated, on its branch), or `"pad"`, repeated at once.

    A question copies nothing and leaves the stream as it is, unless `update_state=True`. Any number of threads may ask
    while another appends; each question sees the stream as it was when it came. While an answer with
    `update_state=True` is made, other changes raise `StreamBusy`. All state is here, none in the model: several
    streams may share one model. `device=None` means the model's.

    Raises (every method that asks or appends):
        ForkedAmidChange, WeightsChanged: the stream cannot go on, but after a `reset`. Answers raise the latter at
            their end too.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        eviction_config: EvictionConfig | None = None,
        *,
        wrapping: Wrapping = "turns",
        text_after_video: TextRule = "spatial",
        odd: Odd = "wait",
        system_prompt: str = prompts.SYSTEM_PROMPT,
        max_context_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        require_one_of(Odd, odd=odd)
        self.runner = QwenRunner(model, processor, device, min_pixels=min_pixels, max_pixels=max_pixels)
        self.sequence = VideoSequence(
            self.runner,
            wrapping=wrapping,
            text_after_video=text_after_video,
            eviction=eviction_config,
            max_context_tokens=max_context_tokens,
            system_prompt=system_prompt,
        )
        self._wrapping, self._odd = wrapping, odd
        self._lock = ForkAwareLock()
        self._marks: WeightMarks | None = None  # of the weights that the cache was computed by
        self._updating_in: int | None = None  # the process that makes an answer with update_state
        self._begin()

    _extract_vision_segment = staticmethod(prompts._extract_vision_segment)
    _extract_user_vision_turn = staticmethod(prompts._extract_user_vision_turn)

    def _begin(self) -> None:
        self._size: tuple[int, int] | None = None
        self._clock = ChunkClock(self.runner.tokens_per_second, self.runner.frames_per_grid)
        self._waiting: list[tuple[np.ndarray, float | None]] = []  # resized frames without their partner, and times
        self._fps: float | None = None
        self._last_time_s: float | None = None
        self._chunks = self._frames = 0

    def append_frame(
        self, image: Any, text_content: str = "", as_video: bool = False, fps: float | None = None
    ) -> None:
        """Append one image as a still image with a turn of its own; or, as a list or with `as_video`, as video.

        Raises:
            ValueError: a still image in a continuous stream, which is one video.
            FrameSizeChanged, ContextTooLong, StreamBusy: the stream is as it was.
        """
        if isinstance(image, (list, tuple)) or as_video:
            frames = list(image) if isinstance(image, (list, tuple)) else [image]
            self._append(frames, fps=2.0 if fps is None else fps, times=None, text=text_content)
            return
        if self._wrapping == "continuous":
            raise ValueError("a continuous stream is one video: append its frames with as_video=True")
        with self._changing():
            self._check_goes_on()
            prompts.checked_text(text_content, "text_content")
            resized, size = self._resized([image])
            sequence, chunks = self.sequence, 1
            if self._waiting:  # it will not get a partner; it and the image are appended both, or neither
                sequence, chunks = self.sequence.branch(is_evicting=True), 2
                self._append_waiting_to(sequence)
            self._encode(sequence, resized * self.runner.frames_per_grid, [0], text_content)
            self.sequence, self._waiting, self._clock = sequence, [], self._clock.fresh()
            self._size, self._frames, self._chunks = size, self._frames + 1, self._chunks + chunks

    def append_video_chunk(
        self, frames: Sequence[Any], fps: float = 2.0, *, timestamps: Sequence[float] | None = None
    ) -> None:
        """Append frames, all of the stream's size: PIL images or uint8 [height, width, 3].

        `fps` is the rate at which they were sampled. `timestamps`, in seconds, one per frame and never falling, replace
        it. Within one video (in a continuous stream: until an answer is kept) it is always the one or the other, and
        one rate.

        Raises:
            ValueError: no frames, or times that contradict what came before.
            FrameSizeChanged, TimeRunsBackwards, ContextTooLong, StreamBusy: the stream is as it was.
        """
        self._append(list(frames), fps=fps, times=None if timestamps is None else list(timestamps), text="")

    def _append(self, frames: list[Any], *, fps: float, times: list[float] | None, text: str) -> None:
        if not frames:
            raise ValueError("a chunk needs at least one frame")
        if text and self._wrapping == "continuous":
            raise ValueError("a continuous stream is one video: text_content has no place in it")
        if times is not None and len(times) != len(frames):
            raise ValueError(f"{len(frames)} frames came with {len(times)} timestamps")
        prompts.checked_text(text, "text_content")
        with self._changing():
            self._check_goes_on()
            check_order(times or [], self._last_time_s)
            resized, size = self._resized(frames)
            chunk = [*self._waiting, *zip(resized, times or repeat(None), strict=False)]
            # Told for all frames: one that waits must not contradict its video either.
            self._clock.advance(len(chunk), fps=fps, times=[time for _, time in chunk])
            if self._waiting and times is None and fps != self._fps:
                raise ValueError(
                    f"a frame waits for its partner at {self._fps} frames per second, this chunk comes at {fps}; "
                    "one video has one rate"
                )
            whole = real = len(chunk) - len(chunk) % self.runner.frames_per_grid
            if whole < len(chunk) and (text or self._odd == "pad"):
                whole, real = whole + self.runner.frames_per_grid, len(chunk)
                chunk += [chunk[-1]] * (whole - real)
            if whole:
                clock, ticks = self._clock.advance(real, fps=fps, times=[time for _, time in chunk[:whole]])
                self._encode(self.sequence, [frame for frame, _ in chunk[:whole]], ticks, text)
                self._clock = clock if self.sequence.is_video_open else clock.fresh()
                self._chunks += 1
            self._waiting, self._size, self._fps = chunk[whole:], size, fps
            self._frames += len(frames)
            self._last_time_s = times[-1] if times else self._last_time_s

    def _resized(self, frames: Sequence[Any]) -> tuple[list[np.ndarray], tuple[int, int]]:
        checked, size = [as_frame(frame) for frame in frames], self._size
        for frame in checked:
            size = check_size(frame, size)
        assert size is not None
        return [self.runner.resize(frame) for frame in checked], size

    def _encode(self, sequence: VideoSequence, resized: list[np.ndarray], ticks: list[int], text: str = "") -> None:
        rows, columns = self.runner.token_grid(resized[0])
        sequence.append_video(self.runner.features(resized), ticks, rows=rows, columns=columns, text=text)

    def _append_waiting_to(self, sequence: VideoSequence) -> None:
        (frame, time_s), missing = self._waiting[-1], self.runner.frames_per_grid - len(self._waiting)
        frames = [*(frame for frame, _ in self._waiting), *[frame] * missing]
        times = [*(time for _, time in self._waiting), *[time_s] * missing]
        _, ticks = self._clock.advance(len(self._waiting), fps=self._fps or 2.0, times=times)
        self._encode(sequence, frames, ticks)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            if self._updating_in == os.getpid():
                raise StreamBusy("an answer with update_state=True is being made; finish or close it first")
            yield

    def _check_goes_on(self) -> None:
        """Check that this process can go on with what is in the cache.

        Raises:
            ForkedAmidChange: it may be half-changed.
            WeightsChanged: the model would compute it otherwise now.
        """
        self._lock.check_whole()
        marks = self.runner.weight_marks()
        if self.sequence.manager.tokens_seen and marks != self._marks:
            raise WeightsChanged(
                "the model's weights were written to, replaced or moved, or an adapter was switched since the stream's "
                "first frame: reset() and append the frames again"
            )
        self._marks = marks

    def _check_answered_by(self, marks: WeightMarks | None) -> None:
        if self.runner.weight_marks() != marks:
            raise WeightsChanged(
                "the model's weights changed while it answered: reset(), append the frames again and ask again"
            )

    def _branch(self) -> VideoSequence:
        """The stream as it is now, the frame that waits for its partner included."""
        with self._lock:
            self._check_goes_on()
            if not self._frames:
                raise NoFrames("append frames before you ask about them")
            branch = self.sequence.branch()
            if self._waiting:
                self._append_waiting_to(branch)
            return branch

    def ask(
        self,
        question: str,
        max_new_tokens: int = 256,
        min_new_tokens: int = 1,
        update_state: bool = False,
        do_sample: bool = False,
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> tuple[str, dict[str, Any]]:
        """Answer a question about all frames so far; returns the text and `{ttft, total_latency, output_tokens}`.

        Seconds, from the call on. With `update_state` question and answer become part of the stream; else every key
        and value of it is bitwise what it was.

        Raises:
            NoFrames, ContextTooLong, NonFiniteLogits, StreamBusy: the stream is as it was.
            ValueError: the question holds special tokens, or an option is out of range.
        """
        sampling = Sampling(max_new_tokens, min_new_tokens, do_sample, temperature, top_p)
        *_, final = self._answer(question, sampling, update_state=update_state)
        return final["text"], final["metrics"]

    def ask_stream(
        self,
        question: str,
        max_new_tokens: int = 256,
        min_new_tokens: int = 1,
        update_state: bool = False,
        do_sample: bool = False,
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> Iterator[dict[str, Any]]:
        """As `ask`, yielding `{type: "token", delta, text, ttft}` and a last `{type: "final", text, metrics}`.

        The question comes when the first event is asked for. A generator that is closed early, or dropped, leaves the
        stream as it was, with `update_state` too. Frames may be appended between tokens, which the answer does not see;
        not with `update_state`.
        """
        sampling = Sampling(max_new_tokens, min_new_tokens, do_sample, temperature, top_p)
        return self._answer(question, sampling, update_state=update_state)

    def _answer(self, question: str, sampling: Sampling, *, update_state: bool) -> Iterator[dict[str, Any]]:
        started, process = time.perf_counter(), os.getpid()
        prompts.checked_text(question, "the question")
        with self._changing() if update_state else self._lock:
            branch = self._branch()
            ids = branch.question_ids(question)
            closing = len(self.runner.ids(prompts.END_OF_TURN)) if update_state else 0
            tokens = len(ids) + sampling.max_new_tokens + closing
            branch.check_fits(tokens, "the stream, the question and its answer")
            self._updating_in, marks = process if update_state else self._updating_in, self._marks
        answer = Answer(branch, ids, sampling, started)
        try:
            yield from answer.tokens()
            self._check_answered_by(marks)
            if update_state:
                answer.close_turn()
                with self._lock:
                    if process != os.getpid():
                        raise StreamBusy("the process that forked this one began this answer, and alone can keep it")
                    self.sequence.adopt(branch)
                    self._chunks += bool(self._waiting)
                    self._waiting, self._clock = [], self._clock.fresh()
        finally:
            if update_state and process == os.getpid():
                self._updating_in = None
        yield answer.final()

    def ask_choice(self, question: str, choices: Iterable[str]) -> tuple[str, dict[str, Any]]:
        """Return the likeliest of several answers, and `{scores: {choice: log-probability}, total_latency}`.

        A score is the sum over the choice's tokens, so longer choices tend to lower ones. The stream is bitwise as it
        was. Choices of more than one token take, for the time of the call, a copy of the cache each.

        Raises:
            ValueError: no choices, an empty one, one twice, or a text instead of several.
            NoFrames, ContextTooLong, NonFiniteLogits: the stream is as it was.
        """
        started = time.perf_counter()
        given = [] if isinstance(choices, str) or not isinstance(choices, Iterable) else list(choices)
        texts = [str(prompts.checked_text(choice, "a choice")) for choice in given]
        if not texts or not all(texts) or len(set(texts)) != len(texts):
            raise ValueError(f"choices must be different texts, none empty, at least one; got {choices!r}")
        prompts.checked_text(question, "the question")
        with self._lock:
            branch, marks = self._branch(), self._marks
        ids, encoded = branch.question_ids(question), [self.runner.ids(text) for text in texts]
        branch.check_fits(len(ids) + max(map(len, encoded)), "the stream, the question and a choice")
        scores = dict(zip(texts, score_choices(branch, ids, encoded), strict=True))
        self._check_answered_by(marks)
        best = max(texts, key=scores.__getitem__)
        return best, {"scores": scores, "total_latency": time.perf_counter() - started}

    def get_cache_info(self) -> dict[str, Any]:
        """Return `{chunks_encoded, total_frames, cache_seq_length, cache_memory_gb, stream_state, eviction_stats}`.

        `cache_memory_gb` is in GiB, exact; `cache_memory_bytes` has the bytes. `total_frames` counts the frame that
        waits for its partner. `stream_state` counts what was ever appended: `last_cache_position` is the index of the
        last token, `rope_deltas` how far the next position is from the next index. `eviction_stats` is None without
        eviction.
        """
        with self._lock:
            manager = self.sequence.manager
            state = {
                "last_cache_position": manager.tokens_seen - 1,
                "rope_deltas": manager.next_position - manager.tokens_seen,
            }
            return {
                "chunks_encoded": self._chunks,
                "total_frames": self._frames,
                "cache_seq_length": manager.get_seq_length(),
                "cache_memory_gb": manager.nbytes / 2**30,
                "cache_memory_bytes": manager.nbytes,
                "stream_state": state,
                "eviction_stats": self.sequence.ledger.stats(),
            }

    def reset(self) -> None:
        """Begin another stream, of any frame size. Answers that are being made end on their branches.

        Raises:
            StreamBusy: an answer with `update_state=True` is being made.
        """
        with self._changing():
            self.sequence.clear()
            self._begin()
            self._lock.begin_anew()
