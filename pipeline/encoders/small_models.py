"""Small models of the real architectures with weights from a fixed seed, for tests and demos without downloads."""

from __future__ import annotations

from typing import Any

import torch

PATCH = 14
SIDE = 84  # 6 x 6 patches

CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
DINOV2_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 96},
    "crop_size": {"height": SIDE, "width": SIDE},
}
QWEN_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 64 * 28 * 28,
}

CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 32,
}
DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 64,
    "mlp_ratio": 2,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
QWEN = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": 257,
    },
    "vision_config": {
        "model_type": "qwen2_5_vl_vision",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "vision_start_token_id": 258,
    "vision_end_token_id": 259,
    "image_token_id": 260,
    "video_token_id": 261,
}

QWEN_SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def fill_from_seed(model: torch.nn.Module, *, seed: int, dtype: torch.dtype) -> None:
    """Set every parameter from `seed` alone, in name order, without touching torch's global generator.

    Buffers keep their dtype, as they do in `from_pretrained`: rotary frequencies in 16 bits would be other
    frequencies.

    transformers' own initialisation would depend on its version and leave features near zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.data = (1 + 0.1 * noise if is_scale else 0.1 * noise).to(dtype)


def qwen_with_head(*, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a small `Qwen2_5_VLForConditionalGeneration` on the CPU; with `seed` 0 its body is the encoder's."""
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(**QWEN)
    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    fill_from_seed(model.model, seed=seed, dtype=dtype)
    fill_from_seed(model.lm_head, seed=seed + 1, dtype=dtype)
    model.generation_config = GenerationConfig(eos_token_id=QWEN["text_config"]["eos_token_id"])  # type: ignore[index]
    return model.eval().requires_grad_(False)


def byte_tokenizer() -> Any:
    """Return a tokenizer with one token per UTF-8 byte, Qwen's special tokens, and a chat template of their form."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in QWEN_SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=QWEN_CHAT_TEMPLATE)
