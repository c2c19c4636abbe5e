"""Delayed inference: frames are only kept as they come, and encoded when a question does."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from cache_store import FeatureStore
from consumers.streaming.decoding import Answer, Sampling
from consumers.streaming.errors import WeightsChanged
from consumers.streaming.fork_aware_lock import ForkAwareLock
from consumers.streaming.frame_memory import KeptFrame, SmartFrameManager
from consumers.streaming.frames import as_frame, check_size
from consumers.streaming.pair_features import PairFeatures
from consumers.streaming.positions import TextRule, tick_of_frame, tick_of_time
from consumers.streaming.prompts import SYSTEM_PROMPT, checked_text
from consumers.streaming.qwen_runner import QwenRunner
from consumers.streaming.video_sampler import VideoSampler, seconds_per_grid
from consumers.streaming.video_sequence import VideoSequence
from pipeline.encoders.live_weights import WeightMarks

NO_FRAMES = "Error: no frames"


class DelayedBatchInferenceEngine:
    """Both memories of a `SmartFrameManager`, encoded as one video when a question needs them.

    Later questions reuse that video's KV cache, bitwise as it was, until a frame is added or the model's weights
    change. Frames are paired by the order in which they came (with `target_fps`: by slot), and one whose partner is not
    there is repeated: so pairs stay the same while memories change, and a changed union pays for its new pairs and the
    language model's prefill. `feature_store` keeps the pairs' features across processes.

    With `enable_absolute_time_encoding` each pair lies at its true time, else pairs are evenly spread over the
    duration. `min_pixels` and `max_pixels` bound each frame. Threads may add and ask at the same time.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        star_memory_size: int = 20,
        stream_window_size: int = 20,
        max_pixels: int = 4 * 224 * 224,
        min_pixels: int = 4 * 28 * 28,
        target_fps: float | None = None,
        enable_absolute_time_encoding: bool = True,
        use_disk_cache: bool = True,
        max_sampled_frames: int = 48,
        *,
        importance_threshold: float = 0.6,
        scene_change_threshold: float = 0.3,
        feature_store: FeatureStore | None = None,
        text_after_video: TextRule = "spatial",
        system_prompt: str = SYSTEM_PROMPT,
        max_context_tokens: int | None = None,
    ) -> None:
        self.runner = QwenRunner(model, processor, device, min_pixels=min_pixels, max_pixels=max_pixels)
        self.memory = SmartFrameManager(
            star_memory_size, stream_window_size, importance_threshold, scene_change_threshold, use_disk_cache
        )
        self._sampler = VideoSampler(target_fps, max_sampled_frames)
        self._has_true_times = enable_absolute_time_encoding
        self._features = PairFeatures(self.runner, feature_store)
        self._sequence_options: dict[str, Any] = {
            "text_after_video": text_after_video,
            "system_prompt": system_prompt,
            "max_context_tokens": max_context_tokens,
        }
        self._lock = ForkAwareLock()
        self._size: tuple[int, int] | None = None
        self._sequence: VideoSequence | None = None  # of the present union; None: to be encoded
        self._marks: WeightMarks | None = None  # of the weights that it was computed by
        self._new_sequence()  # refuses here, not at the first question, what could never work

    def _new_sequence(self) -> VideoSequence:
        return VideoSequence(self.runner, wrapping="continuous", **self._sequence_options)

    def add_frame(self, frame: Any, timestamp: float) -> str:
        """Add a frame, a PIL image or uint8 [height, width, 3], at a time in seconds; returns what became of it.

        As in `Frame #10 added to Stream Memory + Star Memory (scene change) | Star: 3, Stream: 10`.

        Raises:
            FrameSizeChanged, TimeRunsBackwards: the memories are as they were.
            ValueError: it is no such frame, one edge is over 200 times the other, or the time is no finite number; the
                memories are as they were.
        """
        with self._lock:
            self._lock.check_whole()
            size = check_size(as_frame(frame), self._size)
            if self._size is None:
                self.runner.preprocess.resize.resized_to(*size)  # refuses what no question could encode
            added = self.memory.add_frame(frame, timestamp)
            self._size, self._sequence = size, None
            star = f" + Star Memory ({added['reason']})" if added["added_to_star"] else ""
            return (
                f"Frame #{self.memory.total_added} added to Stream Memory{star} | "
                f"Star: {added['star_count']}, Stream: {added['stream_count']}"
            )

    def ask(
        self,
        question: str,
        max_new_tokens: int = 512,
        do_sample: bool = True,
        temperature: float = 0.7,
        top_p: float = 0.9,
        repetition_penalty: float = 1.1,
    ) -> tuple[str, dict[str, Any]]:
        """Answer a question about the frames in memory; without any, the text is `Error: no frames`.

        Returns the text and `{ttft, total_latency, generation_latency, output_tokens}`, in seconds; only when frames
        were encoded also `{encoding_latency, frames_encoded, visual_tokens, pairs_encoded, pairs_reused}`.

        Raises:
            ContextTooLong: the frames, the question and its answer do not fit.
            NonFiniteLogits: no answer follows from the model's logits.
            WeightsChanged: the model's weights changed while it answered.
            ValueError: the question holds special tokens, or an option is out of range.
        """
        sampling = Sampling(max_new_tokens, 1, do_sample, temperature, top_p, repetition_penalty)
        *_, final = self._answer(question, sampling)
        return final["text"], final["metrics"]

    def ask_stream(
        self,
        question: str,
        max_new_tokens: int = 512,
        do_sample: bool = True,
        temperature: float = 0.7,
        top_p: float = 0.9,
        repetition_penalty: float = 1.1,
    ) -> Iterator[str]:
        """As `ask`, yielding the answer piece by piece. It may be closed early."""
        sampling = Sampling(max_new_tokens, 1, do_sample, temperature, top_p, repetition_penalty)
        events = self._answer(question, sampling)
        return (event["delta"] for event in events if event["type"] == "token")

    def _answer(self, question: str, sampling: Sampling) -> Iterator[dict[str, Any]]:
        started = time.perf_counter()
        checked_text(question, "the question")
        with self._lock:
            self._lock.check_whole()
            marks = self.runner.weight_marks()
            if marks != self._marks:
                self._sequence, self._marks = None, marks
            has_frames = self.memory.total_added > 0
            encoding = self._encode() if has_frames and self._sequence is None else {}
            branch = None if self._sequence is None else self._sequence.branch()
        if branch is None:
            yield {"type": "token", "delta": NO_FRAMES, "text": NO_FRAMES, "ttft": 0.0}
            metrics = {"ttft": 0.0, "total_latency": 0.0, "generation_latency": 0.0, "output_tokens": 0}
            yield {"type": "final", "text": NO_FRAMES, "metrics": metrics}
            return
        begun = time.perf_counter()
        ids = branch.question_ids(question)
        branch.check_fits(len(ids) + sampling.max_new_tokens, "the frames, the question and its answer")
        answer = Answer(branch, ids, sampling, started)
        yield from answer.tokens()
        if self.runner.weight_marks() != marks:
            raise WeightsChanged("the model's weights changed while it answered: ask again")
        yield answer.final(generation_latency=time.perf_counter() - begun, **encoding)

    def _encode(self) -> dict[str, Any]:
        """Prefill the present union; returns the figures of it."""
        started, kept = time.perf_counter(), self.memory.union()
        kept = [kept[index] for index in self._sampler.choose([frame.timestamp for frame in kept])]
        pairs = self._paired(kept)
        loads = {name: partial(self._resized, pair) for name, pair in pairs.items()}
        features, (rows, columns), counts = self._features.get(loads)
        sequence = self._new_sequence()
        ticks = self._ticks([pair[0].timestamp for pair in pairs.values()], kept[-1].timestamp)
        sequence.append_video(torch.cat(features), ticks, rows=rows, columns=columns)
        self._sequence = sequence
        return {
            "encoding_latency": time.perf_counter() - started,
            "frames_encoded": len(kept),
            "visual_tokens": len(pairs) * rows * columns,
            "pairs_encoded": counts.encoded,
            "pairs_reused": counts.from_memory + counts.from_store,
        }

    def _paired(self, kept: list[KeptFrame]) -> dict[Hashable, list[KeptFrame]]:
        """Group frames that came as neighbours, by a name that never stands for other frames."""
        groups: dict[int, list[KeptFrame]] = {}
        for frame in kept:
            slot = self._sampler.slot(frame.timestamp)
            place = frame.index if slot is None else slot
            groups.setdefault(place // self.runner.frames_per_grid, []).append(frame)
        return {tuple(frame.index for frame in group): group for group in groups.values()}

    def _resized(self, group: list[KeptFrame]) -> list[np.ndarray]:
        frames = [self.runner.resize(self.memory.pixels(kept)) for kept in group]
        return frames + [frames[-1]] * (self.runner.frames_per_grid - len(frames))

    def _ticks(self, times_s: list[float], last_s: float) -> list[int]:
        per_second = self.runner.tokens_per_second
        if self._has_true_times:
            return [tick_of_time(time_s - times_s[0], tokens_per_second=per_second) for time_s in times_s]
        spacing = seconds_per_grid([times_s[0], last_s], 2 * len(times_s))
        if not spacing:
            return [0] * len(times_s)
        return [tick_of_frame(i, fps=1 / spacing, tokens_per_second=per_second) for i in range(len(times_s))]

    def get_statistics(self) -> dict[str, Any]:
        """Return the memories' figures (see `SmartFrameManager`), and what the KV cache holds: tokens and bytes."""
        with self._lock:
            manager = None if self._sequence is None else self._sequence.manager
            held = {
                "cache_seq_length": manager.get_seq_length() if manager else 0,
                "cache_memory_bytes": manager.nbytes if manager else 0,
            }
            return self.memory.get_statistics() | held

    def reset(self) -> None:
        """Begin another stream, of any frame size; the store keeps its features."""
        with self._lock:
            self.memory.reset()
            self._features.clear()
            self._size = self._sequence = None
            self._lock.begin_anew()
