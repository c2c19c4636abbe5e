"""Models for streaming: Qwen2.5-VL with its language head and what turns text and frames into its inputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from pipeline.encoders import small_models
from pipeline.encoders.checkpoint import (
    DTYPES,
    checked_dtype,
    quiet_transformers,
    read_json,
    stored_dtype,
)
from pipeline.encoders.qwen2_5_vl import find_qwen2_5_vl, load_tokenizer
from pipeline.encoders.vision_tower import ATTENTION, load_complete
from pipeline.vision.preprocessing import QwenImagePreprocess


@dataclass(frozen=True)
class StreamProcessor:
    """What the engines need of a processor; transformers' own cannot be made without torchvision."""

    tokenizer: Any
    image_processor: Any  # a Hugging Face PIL image processor


class StreamQwenModel(Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2.5-VL as earlier scripts named it. The engines take any Qwen2.5-VL, and keep nothing in `stream_state`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.reset_stream_state()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As transformers' own. Its names of a checkpoint's tensors are looked up for its own classes alone."""
        loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.__class__ = cls
        model.reset_stream_state()
        return loaded

    def reset_stream_state(self) -> None:
        """Set `stream_state`, which is the caller's to use, to that of an empty stream."""
        self.stream_state: dict[str, Any] = {"last_cache_position": -1, "rope_deltas": None}


def load_streaming_model(
    model: str | os.PathLike[str],
    device: str = "cpu",
    *,
    dtype: str | None = None,
    attention: str = ATTENTION,
    revision: str | None = None,
) -> tuple[Any, StreamProcessor]:
    """Load `small`, a Qwen2.5-VL checkpoint folder, or a hub id; returns the model, on `device`, and its processor.

    `dtype` is float16, bfloat16 or float32; None: the one that the checkpoint is published in.

    Raises:
        EncoderError: there is no such model, or it is no complete Qwen2.5-VL checkpoint.
    """
    quiet_transformers()
    model = os.fspath(model)
    if model == "small":
        loaded = small_models.qwen_with_head(attention=attention, dtype=DTYPES[checked_dtype(dtype or "float32")])
        return loaded.to(device), _processor(small_models.byte_tokenizer(), small_models.QWEN_PROCESSOR)
    folder, config = find_qwen2_5_vl(model, revision)
    processor = _processor(load_tokenizer(folder), _video_settings(folder))
    wanted_dtype = checked_dtype(dtype or stored_dtype(folder, config))
    loads = Qwen2_5_VLForConditionalGeneration.from_pretrained
    loaded = load_complete(loads, folder, dtype=wanted_dtype, attention=attention)
    return loaded.to(device).eval().requires_grad_(False), processor


def _processor(tokenizer: Any, settings: dict[str, Any]) -> StreamProcessor:
    return StreamProcessor(tokenizer, QwenImagePreprocess.from_config(settings).built)


def _video_settings(folder: Any) -> dict[str, Any]:
    """Return the image processor's settings, with the video processor's pixel bounds where the checkpoint has them."""
    settings = read_json(folder, "preprocessor_config.json")
    if not (folder / "video_preprocessor_config.json").is_file():
        return settings
    video = read_json(folder, "video_preprocessor_config.json")
    bounds = ("size", "min_pixels", "max_pixels")
    kept = {key: value for key, value in settings.items() if key not in bounds}
    return kept | {key: video[key] for key in bounds if video.get(key) is not None}
