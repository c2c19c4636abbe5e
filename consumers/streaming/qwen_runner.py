"""A Qwen2.5-VL model as the streaming engines use it: text to ids, frames to features, tokens into a cache.

Nothing of a stream is kept here, and the model's own `rope_deltas` are neither read nor written, so any number of
streams share one runner or one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from consumers.numeric_options import require_numbers
from consumers.streaming.kv_cache import KVCacheManager, check_holds
from consumers.streaming.prompts import END_OF_TURN
from pipeline.encoders.live_weights import WeightMarks, adapter_states
from pipeline.errors import EncoderError
from pipeline.vision.preprocessing import RECIPE_SETTINGS, QwenImagePreprocess


class QwenRunner:
    """`model` is a `Qwen2_5_VLForConditionalGeneration`; `processor` has its `tokenizer` and `image_processor`.

    Frames are resized by the PIL variant of the processor's video settings where it has any, else of its image
    settings; `min_pixels` and `max_pixels`, per frame, replace the processor's bounds. `device` is where the model's
    inputs go; None: where the model is.

    Raises:
        ValueError: no frame can be within the bounds, the model is on another kind of device than `device`, or it was
            loaded under `torch.inference_mode`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.model, self.tokenizer = model, processor.tokenizer
        self._device = None if device is None else torch.device(device)
        if self.device.type != torch.device(model.device).type:
            raise ValueError(f"device is {self.device}, and the model is on {model.device}; move the model there first")
        self.weight_marks()
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        require_numbers(**{name: bound for name, bound in given.items() if bound is not None})
        self.preprocess = _preprocess(processor, min_pixels, max_pixels)
        self._table = self.preprocess.table()
        vision, text = model.config.vision_config, model.config.get_text_config()
        self.frames_per_grid = int(vision.temporal_patch_size)
        self.tokens_per_second = float(vision.tokens_per_second)
        self.longest_context = int(text.max_position_embeddings)
        self._token_side = int(vision.patch_size) * int(vision.spatial_merge_size)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self._device or torch.device(self.model.device)

    def weight_marks(self) -> WeightMarks:
        """Return what is another after any weight was written to, replaced or moved; in a millisecond.

        Raises:
            ValueError: writes to the weights are not counted.
        """
        weights, modules = [], [self.model]
        for module in modules:  # `parameters()` takes three times as long
            modules += [child for child in module._modules.values() if child is not None]
            weights += [weight for weight in module._parameters.values() if weight is not None]
        marks = WeightMarks(weights, adapter_states(modules))
        if not marks.counts_writes:
            raise ValueError(
                "the model was loaded or moved under torch.inference_mode(), where torch does not count what is "
                "written to weights, so that a change would not be noticed; load it outside, ask it anywhere"
            )
        return marks

    def end_ids(self) -> set[int]:
        """Return the ids that end an answer: the model's, and the end of a turn."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ids = set(named) if isinstance(named, (list, tuple)) else {named}
        ids.add(self.tokenizer.convert_tokens_to_ids(END_OF_TURN.strip()))
        return {int(token) for token in ids if token is not None}

    def ids(self, text: str) -> torch.Tensor:
        """Return the token ids of a text, int64 [tokens], special tokens parsed and none added."""
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(found, dtype=torch.long, device=self.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [..., width] of ids [...]."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """Resize uint8 [height, width, 3] as the processor does; equal sizes give equal sizes."""
        return self.preprocess(frame)

    def token_grid(self, resized: np.ndarray) -> tuple[int, int]:
        """Return the rows and columns of tokens of one resized frame."""
        return resized.shape[0] // self._token_side, resized.shape[1] // self._token_side

    def patches(self, resized: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the model's patches and grid of whole groups of resized frames; see `patchify_video`."""
        pixels = torch.from_numpy(np.stack(resized)).to(self.device)
        return self.preprocess.patchify_video(self._table(pixels))

    @torch.no_grad()
    def features(self, resized: Sequence[np.ndarray]) -> torch.Tensor:
        """Encode whole groups of resized frames to [tokens, width], group by group, row by row, in one forward.

        No group's features depend on another group, but for the rounding of kernels that know the batch's size.
        """
        patches, grid = self.patches(resized)
        tower = self.model.model.visual
        features: torch.Tensor = tower(patches.to(tower.dtype), grid_thw=grid).pooler_output
        return features

    @torch.no_grad()
    def extend(
        self,
        sequence: KVCacheManager,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        *,
        next_position: int,
        keep: int = 1,
    ) -> torch.Tensor:
        """Append tokens to a sequence; on any error it is as it was.

        Args:
            embeddings: [batch, tokens, width].
            positions: int64 [3, tokens], the same for the whole batch.
            next_position: where text after them will go.
            keep: how many of the last tokens' logits are wanted, 0 for all.

        Returns:
            Logits [batch, keep, vocabulary].
        """
        from transformers import DynamicCache

        batch, tokens = embeddings.shape[:2]
        before = sequence.get_seq_length()
        if sequence.cache is None:
            sequence.cache = DynamicCache(config=self.model.config)
        try:
            logits: torch.Tensor = self.model(
                inputs_embeds=embeddings,
                position_ids=positions.to(self.device)[:, None].expand(3, batch, tokens),
                past_key_values=sequence.cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
            check_holds(sequence.cache, before + tokens)
        except BaseException:
            sequence.cut_back(before)
            raise
        sequence.next_position = next_position
        sequence.tokens_seen += tokens
        return logits

    def extend_text(self, sequence: KVCacheManager, ids: torch.Tensor, *, keep: int = 1) -> torch.Tensor:
        """Append text, ids [tokens] or [batch, tokens], at the sequence's next position; see `extend`."""
        batched = ids[None] if ids.dim() == 1 else ids
        count, start = batched.shape[1], sequence.next_position
        positions = (torch.arange(count) + start).expand(3, -1)
        return self.extend(sequence, self.embed(batched), positions, next_position=start + count, keep=keep)


def _preprocess(processor: Any, min_pixels: int | None, max_pixels: int | None) -> QwenImagePreprocess:
    source = getattr(processor, "video_processor", None) or processor.image_processor
    stored = source.to_dict()
    settings = {name: stored[name] for name in RECIPE_SETTINGS if stored.get(name) is not None}
    edges = {
        "shortest_edge": source.size["shortest_edge"] if min_pixels is None else min_pixels,
        "longest_edge": source.size["longest_edge"] if max_pixels is None else max_pixels,
    }
    config = settings | {"image_processor_type": "Qwen2VLImageProcessor", "size": edges}
    try:
        return QwenImagePreprocess.from_config(config)
    except EncoderError as exc:
        raise ValueError(str(exc)) from exc
