"""One tab of the demo: a stream, the memory of its frames, and the thread that feeds it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from consumers.streaming.demo.questions import Questions
from consumers.streaming.demo.records import Exchange, MemoryPoint, Star, Status
from consumers.streaming.demo.refusal import DemoRefused, told
from consumers.streaming.demo.thumbnails import thumbnail
from consumers.streaming.demo.video_chunks import TimedFrame, video_chunks
from consumers.streaming.eviction import EvictionConfig
from consumers.streaming.frame_memory import SmartFrameManager
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper
from pipeline.errors import MediaError

CHUNK_SIZES = (1, 2, 4, 6, 8)
MOST_POINTS = 400  # of the memory's history; beyond, every other one goes
_QUESTION_TOKENS = 512  # of the model's context, left for a question


@dataclass(frozen=True)
class SessionOptions:
    """What all sessions of a demo have in common."""

    fps: float = 2.0  # frames of a video that go into the stream, per second
    max_new_tokens: int = 128
    max_cache_tokens: int = 16384  # beyond, the oldest chunks go; never more than the model's context takes
    max_pixels: int = 4 * 224 * 224  # of a frame as the model sees it
    star_frames: int = 12
    importance_threshold: float = 0.25  # at the memory's own, 0.6, only scene changes would enter

    def limit_tokens(self, model: Any) -> int:
        """Return how many tokens a stream of `model` keeps: its context must take a question and its answer too.

        Raises:
            ValueError: `max_new_tokens` leaves none.
        """
        context = int(model.config.get_text_config().max_position_embeddings)
        room = context - self.max_new_tokens - _QUESTION_TOKENS
        if room < 1:
            raise ValueError(f"answers of {self.max_new_tokens} tokens leave nothing of a context of {context}")
        return min(self.max_cache_tokens, room)


class _Run:
    """One start, told apart by identity: a thread of an earlier start never feeds a later one."""

    def __init__(self, chunk_size: int) -> None:
        if chunk_size not in CHUNK_SIZES:
            raise DemoRefused(f"A chunk has {', '.join(map(str, CHUNK_SIZES))} frames, not {chunk_size}.")
        self.chunk_size = chunk_size
        self.started = time.monotonic()
        self.gathered: list[TimedFrame] = []  # of a webcam, until they make a chunk


class DemoSession:
    """Everything of one tab. Sessions share the model and nothing else; methods may be called from any thread.

    A question holds the stream between two chunks while it is answered, and lets it go on by itself.
    """

    def __init__(self, model: Any, processor: Any, options: SessionOptions) -> None:
        self._options = options
        eviction = EvictionConfig(options.limit_tokens(model))
        # A last frame that waits for its partner would come with each question, beyond what the limit leaves for it.
        self._backend = QwenInferenceWrapper(
            model, processor, eviction_config=eviction, max_pixels=options.max_pixels, odd="pad"
        )
        self._memory = SmartFrameManager(options.star_frames, 1, options.importance_threshold)
        self._changed = threading.Condition()
        self._run: _Run | None = None
        self._is_appending = False
        self._presses = count(1)  # of Start and Reset; one that is slow to open its file undoes no later one
        self._begun: float = 0  # the latest press that has taken effect
        self._status = Status()
        self._questions = Questions(self._backend, self._changed, options.max_new_tokens)
        self._stars: dict[int, Star] = {}  # by the frame's number

    def status(self) -> Status:
        """Return the stream as it was after its last chunk; never waits for the model."""
        with self._changed:
            return replace(self._status, is_asking=self._questions.is_asking)

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return what was asked and answered, the latest first."""
        return self._questions.exchanges

    def start_video(self, path: Path | None, *, chunk_size: int, is_paced: bool) -> None:
        """Begin another stream with a file, at the pace of its times or as fast as the model takes it.

        Without effect if, while the file is opened, another start or a reset takes effect that was called later.

        Raises:
            DemoRefused: there is no file, no such chunk size, or the first chunk cannot be read; the stream that was
                there goes on.
        """
        if path is None:
            raise DemoRefused("Choose a video first.")
        press, run = next(self._presses), _Run(chunk_size)
        chunks = video_chunks(path, size=chunk_size, fps=self._options.fps)
        try:
            first = list(islice(chunks, 1))
        except (MediaError, OSError) as exc:
            raise DemoRefused(str(exc)) from exc
        feed = chain(first, chunks)
        self._begin(press, run, Status(state="streaming"))
        threading.Thread(target=self._feed, args=(run, feed, is_paced), name="demo-feeder", daemon=True).start()

    def start_webcam(self, *, chunk_size: int) -> None:
        """Begin another stream with the frames that `add_webcam_frame` brings from now on.

        Raises:
            DemoRefused: no such chunk size.
        """
        self._begin(next(self._presses), _Run(chunk_size), Status(state="streaming", is_webcam=True))

    def add_webcam_frame(self, pixels: np.ndarray) -> None:
        """Take a frame, uint8 [height, width, 3]. Without effect unless a webcam streams and the model keeps up."""
        with self._changed:
            run = self._run
            if run is None or not self._status.is_webcam or self._is_appending or not self._may_append():
                return
            run.gathered.append(TimedFrame(pixels, time.monotonic() - run.started))
            if len(run.gathered) < run.chunk_size:
                return
            chunk, run.gathered = run.gathered, []
            self._is_appending = True
        with self._failures_shown(run):
            self._append(chunk)

    def pause(self) -> None:
        """Hold the stream after the chunk at hand. Without effect unless it streams."""
        self._switch("streaming", "paused")

    def resume(self) -> None:
        """Let a held stream go on. Without effect unless it was held."""
        self._switch("paused", "streaming")

    def reset(self) -> None:
        """End the stream and the answer at hand; forget frames, answers and messages."""
        self._begin(next(self._presses), None, Status())

    def close(self) -> None:
        """As `reset`, for good: a stream that is being started never begins."""
        self._begin(math.inf, None, Status())

    def stop_answer(self) -> None:
        """End the answer at hand after its next token; what there is of it stays."""
        self._questions.stop()

    def ask(self, question: str) -> Iterator[tuple[Exchange, ...]]:
        """Answer a question; yields `exchanges()` again and again while the answer grows.

        Raises:
            DemoRefused: the question is empty or holds what no question may, or another one is being answered.
        """
        return self._questions.ask(question, self._settled)

    def choose(self, question: str, choices: Sequence[str]) -> Iterator[tuple[Exchange, ...]]:
        """Tell which of several answers is the likeliest; yields `exchanges()` as `ask` does.

        Raises:
            DemoRefused: as `ask`, or there are fewer than two different choices.
        """
        return self._questions.choose(question, choices, self._settled)

    def _settled(self) -> float:
        """Wait for the end of the chunk at hand, which a question must not split; returns the stream's time."""
        self._changed.wait_for(lambda: not self._is_appending)
        return self._status.time_s

    def _begin(self, press: float, run: _Run | None, status: Status) -> None:
        with self._changed:
            if press < self._begun:
                return
            self._begun, self._run = press, None
            self._questions.stop()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_appending)
            if press < self._begun:
                return
            self._backend.reset()
            self._memory.reset()
            self._questions.forget()
            self._stars = {}
            self._run, self._status = run, status

    def _switch(self, old: str, new: str) -> None:
        with self._changed:
            if self._status.state == old:
                self._status = replace(self._status, state=new)
                self._changed.notify_all()

    def _may_append(self) -> bool:
        return self._status.state == "streaming" and not self._questions.is_asking

    def _feed(self, run: _Run, chunks: Iterator[list[TimedFrame]], is_paced: bool) -> None:
        """Append a file's chunks, each after the last one by as much as its frames come later, if it is paced."""
        due, previous_s = time.monotonic(), 0.0
        with self._failures_shown(run):
            for chunk in chunks:
                if is_paced:
                    due += chunk[-1].time_s - previous_s
                if not self._takes_turn(run, due):
                    return
                due, previous_s = time.monotonic(), chunk[-1].time_s
                self._append(chunk)
            self._end(run, "ended")

    def _takes_turn(self, run: _Run, due: float) -> bool:
        """Wait until the run's next chunk may be appended, and say so; False if the run is over."""
        with self._changed:
            while self._run is run:
                early_s = due - time.monotonic()
                if early_s <= 0 and self._may_append():
                    self._is_appending = True
                    return True
                self._changed.wait(early_s if early_s > 0 else None)
            return False

    def _append(self, chunk: list[TimedFrame]) -> None:
        """Append frames to the stream and to the memory; the caller has set `_is_appending`."""
        grown: dict[str, Any] = {}
        try:
            pixels, times = [frame.pixels for frame in chunk], [frame.time_s for frame in chunk]
            if self._run and self._run.chunk_size == 1:
                info = self._backend.process_frame(pixels[0])
            else:
                info = self._backend.process_video_chunk(pixels, timestamps=times)
            try:
                for frame in chunk:
                    self._remember(frame)
            finally:  # a full disk may fail the memory of frames that the stream has
                grown = self._figures(info) | {"time_s": times[-1]}
        finally:
            with self._changed:
                self._status = replace(self._status, **grown)
                self._is_appending = False
                self._changed.notify_all()

    def _remember(self, frame: TimedFrame) -> None:
        judged = self._memory.add_frame(frame.pixels, frame.time_s)
        if judged["added_to_star"]:
            number = self._memory.total_added - 1
            picture = thumbnail(frame.pixels)
            self._stars[number] = Star(frame.time_s, judged["reason"], judged["importance"], picture)
        kept = {star.index for star in self._memory.stars()}
        self._stars = {number: star for number, star in self._stars.items() if number in kept}

    def _figures(self, info: dict[str, Any]) -> dict[str, Any]:
        history = (*self._status.history, MemoryPoint(info["chunks_encoded"], info["cache_memory_bytes"]))
        if len(history) > MOST_POINTS:
            history = (*history[:-1:2], history[-1])
        return {
            "chunks": info["chunks_encoded"],
            "frames": info["total_frames"],
            "tokens": info["cache_seq_length"],
            "evicted_tokens": info["eviction_stats"]["tokens_evicted"],
            "cache_bytes": info["cache_memory_bytes"],
            "history": history,
            "stars": tuple(self._stars.values()),
        }

    @contextmanager
    def _failures_shown(self, run: _Run) -> Iterator[None]:
        """End a run that fails, with its reason on the page; what is in the stream stays."""
        try:
            yield
        except Exception as exc:
            message = told(exc)
            if message is None:
                logging.getLogger(__name__).exception("a stream of the demo failed")
                message = "The stream stopped at an unexpected error; the server's log has it."
            self._end(run, "failed", message)

    def _end(self, run: _Run, state: str, message: str = "") -> None:
        with self._changed:
            if self._run is run:
                self._status = replace(self._status, state=state, message=message)
                self._changed.notify_all()
