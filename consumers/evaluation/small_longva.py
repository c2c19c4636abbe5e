"""A small LongVA with weights from a fixed seed: CLIP tower, two-layer projector, 2x2 average pool, Qwen2 decoder.

Laid out as LongVA's own classes are, so that whatever finds its way in those finds it here. The tower is that of the
encoder `longva --model small`, whatever the seed of the rest, as several fine-tunings share one frozen tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.encoders import small_models
from pipeline.encoders.longva import ARCHITECTURE_KEYS

IMAGE_TOKEN_INDEX = -200  # where an image's tokens go among the ids; LongVA's number
WIDTH = 64
DECODER = {
    "vocab_size": 264,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 0,
}


class SmallVisionTower(torch.nn.Module):
    """CLIP's hidden state before the last layer, without the class token, in the images' dtype."""

    def __init__(self) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        known = {name: value for name, value in small_models.CLIP_VISION.items() if name in ARCHITECTURE_KEYS}
        self.vision_tower: Any = CLIPVisionModel(CLIPVisionConfig(**known, attn_implementation="sdpa"))
        self.select_layer, self.select_feature = -2, "patch"
        self.is_loaded = True

    @property
    def config(self) -> Any:
        return self.vision_tower.config

    @property
    def num_patches_per_side(self) -> int:
        return int(self.config.image_size // self.config.patch_size)

    def forward(self, images: Any) -> Any:
        if isinstance(images, list):
            return [self(image.unsqueeze(0)) for image in images]
        taken = images.to(self.vision_tower.device, self.vision_tower.dtype)
        states = self.vision_tower(taken, output_hidden_states=True).hidden_states[self.select_layer]
        return states[:, 1:].to(images.dtype)


class _Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = SmallVisionTower()
        self.mm_projector = torch.nn.Sequential(
            torch.nn.Linear(small_models.CLIP_VISION["hidden_size"], WIDTH),  # type: ignore[arg-type]
            torch.nn.GELU(),
            torch.nn.Linear(WIDTH, WIDTH),
        )

    def get_vision_tower(self) -> SmallVisionTower:
        return self.vision_tower


class SmallLongVA(torch.nn.Module):
    """See the module. `seed` makes projector and decoder; on the CPU, in evaluation mode."""

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
        from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

        super().__init__()
        self.config = SimpleNamespace(
            mm_vision_tower="small", mm_vision_select_layer=-2, mm_spatial_pool_stride=2, mm_spatial_pool_mode="average"
        )
        with torch.random.fork_rng(devices=[]):
            self.model = _Inner()
            self.decoder: Any = Qwen2ForCausalLM._from_config(Qwen2Config(**DECODER), attn_implementation="sdpa")
        small_models.fill_from_seed(self.model.vision_tower.vision_tower, seed=0, dtype=dtype)
        small_models.fill_from_seed(self.model.mm_projector, seed=2 * seed + 1, dtype=dtype)
        small_models.fill_from_seed(self.decoder, seed=2 * seed + 2, dtype=dtype)
        self.decoder.generation_config = GenerationConfig(eos_token_id=DECODER["eos_token_id"], pad_token_id=0)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def get_model(self) -> _Inner:
        return self.model

    def get_vision_tower(self) -> SmallVisionTower:
        return self.model.get_vision_tower()

    def forward(
        self, input_ids: torch.Tensor, images: Sequence[torch.Tensor] = (), modalities: Any = (), image_sizes: Any = ()
    ) -> Any:
        """Return transformers' causal output for ids `[1, length]` with an image token for each of `images`."""
        return self.decoder(inputs_embeds=self._embeds(input_ids, images, modalities))

    def generate(
        self,
        input_ids: torch.Tensor,
        images: Sequence[torch.Tensor] = (),
        modalities: Any = (),
        image_sizes: Any = (),
        **options: Any,
    ) -> torch.Tensor:
        """Return the new ids `[1, length]` alone, as LongVA does."""
        generated: torch.Tensor = self.decoder.generate(
            inputs_embeds=self._embeds(input_ids, images, modalities), **options
        )
        return generated

    def _embeds(self, input_ids: torch.Tensor, images: Sequence[torch.Tensor], modalities: Any) -> torch.Tensor:
        embed = self.decoder.get_input_embeddings()
        if not len(images):
            embedded: torch.Tensor = embed(input_ids)
            return embedded
        encoded = self._encoded(images, modalities)
        ids = input_ids[0]
        places = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
        if len(places) != len(encoded):
            raise ValueError(f"the prompt has {len(places)} places for images, and there are {len(encoded)}")
        parts, start = [], 0
        for place, tokens in zip(places, encoded, strict=True):
            parts += [embed(ids[start:place]), tokens]
            start = place + 1
        return torch.cat([*parts, embed(ids[start:])])[None]

    def _encoded(self, images: Sequence[torch.Tensor], modalities: Any) -> list[torch.Tensor]:
        """Return the decoder's tokens `[n, width]` of each image or video `[frames, 3, h, w]`."""
        features = self.get_vision_tower()(torch.cat(list(images)))
        projected = [self.model.mm_projector(part) for part in torch.split(features, [len(one) for one in images])]
        return [
            (self._pooled(one) if modality == "video" else one).flatten(0, 1)
            for one, modality in zip(projected, modalities, strict=True)
        ]

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        """Average 2 x 2 neighbours: `[frames, tokens, width]` to a quarter of the tokens."""
        side = self.get_vision_tower().num_patches_per_side
        frames, _, width = features.shape
        grid = features.view(frames, side, side, width).permute(0, 3, 1, 2).contiguous()
        pooled = torch.nn.functional.avg_pool2d(grid, self.config.mm_spatial_pool_stride)
        return pooled.flatten(2).transpose(1, 2)
