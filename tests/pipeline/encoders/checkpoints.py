"""Small checkpoints in the layout that the real ones have on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from pipeline.encoders import small_models

CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
}
SIGLIP_PROCESSOR = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}
DINOV2_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 28, "width": 28},
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."


def save_clip_vision(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    return _save(CLIPVisionModel(_clip_vision_config()), folder, CLIP_PROCESSOR, dtype)


def save_full_clip(folder: Path) -> Path:
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
    return _save(CLIPModel(config), folder, CLIP_PROCESSOR)


def save_siglip(folder: Path) -> Path:
    return _save(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)), folder, SIGLIP_PROCESSOR)


def save_dinov2(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    settings = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return _save(Dinov2Model(Dinov2Config(mlp_ratio=2, **settings)), folder, DINOV2_PROCESSOR, dtype)


def save_qwen(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**small_models.QWEN))
    _save(model, folder, small_models.QWEN_PROCESSOR, dtype)
    small_models.byte_tokenizer().save_pretrained(folder)
    return folder


def save_longva(folder: Path, *, tower: Path, mm_vision_tower: str, shard_of_the_language_model: bytes) -> Path:
    """Write a LongVA checkpoint around the CLIP tower saved in `tower`: an index, and one shard per half."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "mm_vision_tower": mm_vision_tower,
        "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu",
        "hidden_size": 3584,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {TOWER_PREFIX + name: tensor for name, tensor in clip_tensors(tower).items()}
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(shard_of_the_language_model)
    weight_map = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(
        ("lm_head.weight", "model.embed_tokens.weight", "model.mm_projector.0.weight", "model.image_newline"),
        "model-00002-of-00002.safetensors",
    )
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def clip_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a vision-only CLIP checkpoint under CLIP's names without prefix."""
    stored = load_file(folder / "model.safetensors")
    return {name.removeprefix("vision_model."): tensor for name, tensor in stored.items()}


def change_one_weight(folder: Path) -> None:
    """Change the last bits of one weight of the vision part."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(n for n in tensors if "patch_embed" in n and n.endswith("weight"))[-1]
    tensors[name] = tensors[name] * (1 + 2**-7)
    save_file(tensors, file, metadata={"format": "pt"})


def _clip_vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, projection_dim=8)


def _save(model, folder: Path, processor: dict, dtype: torch.dtype = torch.float32) -> Path:
    small_models.fill_from_seed(model, seed=1, dtype=dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
