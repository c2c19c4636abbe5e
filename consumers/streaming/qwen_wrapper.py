"""One object for a demo or a script: a stream, and one-shot inference beside it on the same model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.decoding import Sampling
from consumers.streaming.errors import ContextTooLong, NonFiniteLogits
from consumers.streaming.fork_aware_lock import ForkAwareLock
from consumers.streaming.frames import as_frame, check_rate, check_size
from consumers.streaming.kv_cache import check_holds
from consumers.streaming.prompts import (
    ASSISTANT,
    END_OF_TURN,
    USER,
    VISION_END,
    VISION_START,
    checked_text,
    system_turn,
)
from consumers.streaming.qwen_model import load_streaming_model

# `generate` writes the model's `rope_deltas`; nothing else here touches them.
_GENERATE = ForkAwareLock()


class QwenInferenceWrapper:
    """`model` is a loaded Qwen2.5-VL, `processor` its processor; or `model` is what `load_streaming_model` takes.

    `options` are those of `VideoStreamingInference`; one-shot inference has its system prompt and pixel bounds too. The
    methods accept `manual_time`, which earlier versions had, and ignore it.

    Raises:
        ValueError: a loaded model without a processor, or a named one, which has its own, with one.
    """

    def __init__(self, model: Any, processor: Any = None, device: str | None = None, **options: Any) -> None:
        is_named = isinstance(model, (str, os.PathLike))
        if is_named != (processor is None):
            raise ValueError("pass a loaded model with its processor, or a model's name or folder, which has its own")
        if is_named:
            model, processor = load_streaming_model(model, device or "cpu")
        self.engine = VideoStreamingInference(model, processor, device, **options)

    def process_frame(self, frame: Any, text_content: str = "", *, manual_time: Any = None) -> dict[str, Any]:
        """Append one still image; returns `{encode_latency}` and the cache's figures."""
        started = time.perf_counter()
        self.engine.append_frame(frame, text_content)
        return {"encode_latency": time.perf_counter() - started, **self.get_cache_info()}

    def process_video_chunk(
        self,
        frames: Sequence[Any],
        fps: float = 2.0,
        *,
        timestamps: Sequence[float] | None = None,
        manual_time: Any = None,
    ) -> dict[str, Any]:
        """Append frames of a video; returns `{encode_latency}` and the cache's figures.

        See `VideoStreamingInference.append_video_chunk`.
        """
        started = time.perf_counter()
        self.engine.append_video_chunk(frames, fps, timestamps=timestamps)
        return {"encode_latency": time.perf_counter() - started, **self.get_cache_info()}

    def ask_question(
        self,
        question: str,
        max_new_tokens: int = 256,
        update_state: bool = False,
        *,
        min_new_tokens: int = 1,
        do_sample: bool = False,
        temperature: float = 0.7,
        top_p: float = 0.9,
        manual_time: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        """Answer about the stream; see `VideoStreamingInference.ask`."""
        return self.engine.ask(
            question, max_new_tokens, min_new_tokens, update_state, do_sample, temperature=temperature, top_p=top_p
        )

    def ask_choice(
        self, question: str, choices: Iterable[str], *, manual_time: Any = None
    ) -> tuple[str, dict[str, Any]]:
        """Choose an answer about the stream; see `VideoStreamingInference.ask_choice`."""
        return self.engine.ask_choice(question, choices)

    def native_video_inference(
        self,
        frames: Sequence[Any],
        question: str,
        fps: float = 2.0,
        max_new_tokens: int = 256,
        *,
        manual_time: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        """Answer about a whole video by transformers' `generate`, greedily, beside the stream.

        Of the checkpoint's generation config only the ids that end an answer count. Returns the text and `{ttft,
        total_latency, output_tokens}`; `ttft` is the time to the first token. Seconds, from the call on, before the
        frames are resized. An odd number of frames ends with the last one twice, as in transformers. The pixels, and
        so the features, are those of the stream; text after the video follows the rule of the installed transformers.

        Raises:
            ValueError: no frames, a rate or `max_new_tokens` out of range, or a question with special tokens.
            FrameSizeChanged: frames of several sizes.
            ContextTooLong: frames, question and answer do not fit the model's context.
            NonFiniteLogits, UnsupportedCache: no answer follows from the model's logits.
        """
        if not len(frames):
            raise ValueError("a video needs at least one frame")
        check_rate(fps, frames=len(frames))
        seconds = self.engine.runner.frames_per_grid / fps
        return self._generate(frames, question, max_new_tokens, kind="video", seconds_per_grid=seconds)

    def single_frame_inference(
        self, frame: Any, question: str, max_new_tokens: int = 256, *, manual_time: Any = None
    ) -> tuple[str, dict[str, Any]]:
        """Answer about one still image, as `native_video_inference` does about a video."""
        return self._generate([frame], question, max_new_tokens, kind="image")

    def _resized(self, frames: Sequence[Any]) -> list[np.ndarray]:
        """Return whole groups of frames as the model sees them; the last one fills up the last group."""
        checked, size = [as_frame(frame) for frame in frames], None
        for frame in checked:
            size = check_size(frame, size)
        resized = [self.engine.runner.resize(frame) for frame in checked]
        return resized + [resized[-1]] * (-len(resized) % self.engine.runner.frames_per_grid)

    def _generate(
        self,
        frames: Sequence[Any],
        question: str,
        max_new_tokens: int,
        *,
        kind: str,
        seconds_per_grid: float | None = None,
    ) -> tuple[str, dict[str, Any]]:
        from transformers import GenerationConfig, LogitsProcessorList

        Sampling(max_new_tokens)  # refuses what is no number of tokens
        started, runner = time.perf_counter(), self.engine.runner
        resized = self._resized(frames)
        patches, grid = runner.patches(resized)
        rows, columns = runner.token_grid(resized[0])
        placeholders = f"<|{kind}_pad|>" * (int(grid[0, 0]) * rows * columns)
        turn = USER + VISION_START + placeholders + VISION_END + checked_text(question, "the question") + END_OF_TURN
        ids = runner.ids(system_turn(self.engine.sequence.system_prompt) + turn + ASSISTANT)[None]
        tokens = ids.shape[1] + max_new_tokens
        if tokens > runner.longest_context:
            raise ContextTooLong("the video, the question and its answer", tokens, runner.longest_context)
        token = runner.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
        inputs: dict[str, Any] = {"mm_token_type_ids": (ids == token).int() * (2 if kind == "video" else 1)}
        if seconds_per_grid is None:
            inputs |= {"pixel_values": patches, "image_grid_thw": grid}
        else:
            inputs |= {"pixel_values_videos": patches, "video_grid_thw": grid}
            inputs["second_per_grid_ts"] = torch.tensor([seconds_per_grid], device=runner.device)
        ends, watch, finite = sorted(runner.end_ids()), _FirstToken(), _FiniteLogits()
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=1,
            do_sample=False,
            repetition_penalty=1.0,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=ends[0],
            return_dict_in_generate=True,
        )
        with _GENERATE, torch.no_grad(), _only(runner.model, config):
            out = runner.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([finite]),
                streamer=watch,
                **inputs,
            )
        check_holds(out.past_key_values, ids.shape[1])
        if not torch.stack(finite.flags).all():
            raise NonFiniteLogits(str(runner.model.dtype).removeprefix("torch."))
        said = [token for token in out.sequences[0, ids.shape[1] :].tolist() if token not in ends]
        text = str(runner.tokenizer.decode(said, skip_special_tokens=True))
        total, first = time.perf_counter() - started, (watch.time or time.perf_counter()) - started
        return text, {"ttft": first, "total_latency": total, "output_tokens": len(said)}

    def get_cache_info(self) -> dict[str, Any]:
        """Return the stream's figures; see `VideoStreamingInference.get_cache_info`."""
        return self.engine.get_cache_info()

    def reset(self) -> None:
        """Begin another stream."""
        self.engine.reset()


@contextmanager
def _only(model: Any, config: Any) -> Iterator[None]:
    """Let a config's options alone count in `generate`, which takes those that are unset from the model's own.

    Other threads may ask meanwhile: the config must have the ids that end an answer.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class _FiniteLogits:
    """A logits processor of `generate` that notes of each token, on the device, whether its logits are finite."""

    def __init__(self) -> None:
        self.flags: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.flags.append(scores.amax().isfinite())
        return scores


class _FirstToken:
    """A streamer of `generate` that notes when the first token came: the first call brings the prompt."""

    def __init__(self) -> None:
        self._calls, self.time = 0, 0.0

    def put(self, _value: Any) -> None:
        self._calls += 1
        if self._calls == 2:
            self.time = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to do."""
