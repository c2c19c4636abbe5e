"""The package `longva` as lmms-eval's LongVA imports it, around the small model."""

from __future__ import annotations

import copy
import enum
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, Qwen2Config

from consumers.evaluation.small_longva import IMAGE_TOKEN_INDEX, SmallLongVA
from pipeline.encoders.longva import longva_spec
from pipeline.encoders.small_models import byte_tokenizer


class Separators(enum.Enum):
    SINGLE, TWO = 1, 2


class Conversation:
    roles = ("user", "assistant")
    sep, sep2, sep_style = "<|im_end|>", None, Separators.SINGLE

    def __init__(self) -> None:
        self.messages: list[list[Any]] = []

    def copy(self) -> Conversation:
        return copy.deepcopy(self)

    def append_message(self, role: str, text: str | None) -> None:
        self.messages.append([role, text])

    def get_prompt(self) -> str:
        return "".join(f"<|im_start|>{role}\n{text or ''}" for role, text in self.messages)


class Model(SmallLongVA):
    """The small LongVA, which needs no mask and stops by its own token."""

    def tie_weights(self) -> None:
        """As any model of transformers."""

    def generate(self, input_ids: Any, images: Any = None, modalities: Any = ("image",), **options: Any) -> Any:
        known = {name: options[name] for name in ("max_new_tokens", "do_sample", "num_beams", "use_cache")}
        return super().generate(input_ids, images=images or (), modalities=modalities, **known)


def tokenizer_image_token(prompt: str, tokenizer: Any, image_token: int, return_tensors: str) -> torch.Tensor:
    ids: list[int] = []
    for number, part in enumerate(prompt.split("<image>")):
        ids += ([image_token] if number else []) + tokenizer(part, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)


def load_pretrained_model(*args: Any, **options: Any) -> tuple[Any, ...]:
    side = longva_spec("small").preprocess.height
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tokenizer = byte_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", "<|im_end|>"
    return tokenizer, Model(), processor, 4096


def install(monkeypatch: Any) -> None:
    """Put the package's modules where an import finds them."""
    contents: dict[str, dict[str, Any]] = {
        "longva": {},
        "longva.constants": {"DEFAULT_IMAGE_TOKEN": "<image>", "IMAGE_TOKEN_INDEX": IMAGE_TOKEN_INDEX},
        "longva.conversation": {"SeparatorStyle": Separators, "conv_templates": {"qwen_1_5": Conversation()}},
        "longva.mm_utils": {
            "KeywordsStoppingCriteria": lambda *args: None,
            "get_model_name_from_path": lambda path: "llava_qwen",
            "process_images": None,
            "tokenizer_image_token": tokenizer_image_token,
        },
        "longva.model": {},
        "longva.model.builder": {"load_pretrained_model": load_pretrained_model},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def write_checkpoint(folder: Path) -> str:
    """Write the configuration and the tower of a checkpoint, in float32 as the model is not."""
    Qwen2Config(hidden_size=64).save_pretrained(folder)
    state = SmallLongVA(dtype=torch.float32).get_vision_tower().vision_tower.state_dict()
    save_file(
        {f"model.vision_tower.vision_tower.{name}": value for name, value in state.items()},
        folder / "model.safetensors",
    )
    return str(folder)
