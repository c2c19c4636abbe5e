"""Qwen2.5-VL's pooled last hidden state of one robot step: images and instruction in one user turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders import small_models
from pipeline.encoders.base import Json, StepInput, StepOnDevice
from pipeline.encoders.checkpoint import (
    DTYPES,
    DigestedWeights,
    checked_dtype,
    find_checkpoint,
    quiet_transformers,
    read_json,
    read_tensors,
    stored_dtype,
    tensor_files,
)
from pipeline.encoders.vision_tower import ATTENTION, load_complete
from pipeline.errors import EncoderError, first_line
from pipeline.vision.preprocessing import QwenImagePreprocess

IMAGE_PLACEHOLDER = "<|image_pad|>"

# What transformers' Qwen2.5-VL reads of its configuration in a forward over images and text.
VISION_KEYS = (
    "depth",
    "fullatt_block_indexes",
    "hidden_act",
    "hidden_size",
    "in_channels",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "rope_parameters",
    "spatial_merge_size",
    "temporal_patch_size",
    "window_size",
)
TEXT_KEYS = (
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "vocab_size",
)


@dataclass(frozen=True)
class Qwen25VlSpec(DigestedWeights):
    """See `pipeline.encoders.base.StepEncoderSpec`. Made by `qwen2_5_vl_spec`."""

    family: str
    preprocess: QwenImagePreprocess
    architecture_json: str  # as `architecture` gives it, keys sorted
    width: int
    dtype: str
    chat_template: str
    tokenizer_sha256: str  # as `tokenizer_digest` gives it
    folder: Path | None  # None for the small model
    micro_batch: int | None = None  # steps in one forward; None: one

    def recipe(self) -> Mapping[str, Json]:
        """Return everything about the model that changes the numbers, the weights' digest included.

        The first call reads all tensors once; the digest then travels with the spec.
        """
        return {
            "family": self.family,
            "tap_point": "last_hidden_state",
            "weights_sha256": self._weights_digest,
            # Its digest, because each step's file of some kilobytes has the recipe in it.
            "architecture_sha256": hashlib.sha256(self.architecture_json.encode()).hexdigest(),
            "width": self.width,
            "pooling": "mean over tokens, then float16",
            "preprocess": self.preprocess.recipe(),
            "dtype": self.dtype,
            "prompt": {
                "turns": "user",
                "order": "images, then instruction",
                "generation_prompt": False,
                "chat_template_sha256": hashlib.sha256(self.chat_template.encode()).hexdigest(),
                "tokenizer_sha256": self.tokenizer_sha256,
            },
            "attention": ATTENTION,
            "batch": _batch_rule(self.micro_batch),
        }

    def feature_bytes(self) -> int:
        """Return the payload bytes of one step's feature."""
        return self.width * DTYPES["float16"].itemsize

    def load(self, device: str) -> Qwen25VlEncoder:
        """Load the model on `device`, in evaluation mode.

        Raises:
            EncoderError: tensors are missing, of another shape, or not those of the recipe; so with the configuration
                and the tokenizer, which must fit the model besides.
        """
        quiet_transformers()
        if self.folder is None:
            model, tokenizer = _small_model(self.dtype), small_models.byte_tokenizer()
        else:
            with self._as_digested():
                model, tokenizer = _load_model(self.folder, self.dtype), load_tokenizer(self.folder)
        for what, is_same in (
            ("configuration", _architecture_json(model.config) == self.architecture_json),
            ("tokenizer", tokenizer_digest(tokenizer) == self.tokenizer_sha256),
        ):
            if not is_same:
                raise EncoderError(f"the {what} in {self.folder} has changed since it was read for the recipe")
        return Qwen25VlEncoder(model, tokenizer, spec=self, device=device)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor but the language head, which features do not reach, as stored."""
        if self.folder is None:
            yield from _small_model("float32").state_dict().items()
            return
        files = tensor_files(self.folder)
        yield from read_tensors(files, [name for name in files if not name.startswith("lm_head.")])


class Qwen25VlEncoder:
    """A loaded Qwen2.5-VL without its language head; see `pipeline.encoders.base.StepEncoder`."""

    def __init__(self, model: Any, tokenizer: Any, *, spec: Qwen25VlSpec, device: str) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._spec = spec
        self._table = spec.preprocess.table()
        self._device = device
        self._merge = int(model.config.vision_config.spatial_merge_size) ** 2
        if tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER) != model.config.image_token_id:
            raise EncoderError(f"the tokenizer's {IMAGE_PLACEHOLDER} is not the model's image token")

    def encode(self, step: StepInput) -> torch.Tensor:
        """Encode one VLM step to a CPU float16 tensor [1, 1, width], own storage.

        Raises:
            EncoderError: the step has no image, or its instruction holds the image placeholder.
        """
        # Copies: Ray hands out read-only arrays.
        on_device = StepOnDevice([torch.tensor(image) for image in step.images], step.instruction)
        pooled = self.forward([on_device])
        # Inference tensors refuse later use in autograd.
        with torch.inference_mode(mode=False):
            return torch.empty(pooled.shape, dtype=pooled.dtype).copy_(pooled)

    @torch.inference_mode()
    def forward(self, steps: Sequence[StepOnDevice], *, at_most: int | None = None) -> torch.Tensor:
        """Encode steps to a float16 tensor [steps, 1, width] on the device, `at_most` of them in one forward.

        Those that share a forward, or would but for `at_most`, are padded on the right to the longest, behind an
        attention mask; each feature is the mean over its own step's tokens. One step alone is not padded.

        Raises:
            EncoderError: a step has no image, or its instruction holds the image placeholder.
        """
        prepared = [self._prepared(step) for step in steps]
        length = max(len(tokens) for tokens, _, _ in prepared)
        size = at_most or len(prepared)
        parts = [self._pooled(prepared[begin : begin + size], length) for begin in range(0, len(prepared), size)]
        return torch.cat(parts)

    def _prepared(self, step: StepOnDevice) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """Return a step's token ids, the patches of its images, and their grids [images, 3]."""
        if not step.images:
            raise EncoderError("a VLM step needs at least one image")
        patches, grids = zip(*(self._patches(image) for image in step.images), strict=True)
        grid = torch.cat(grids)
        ids: list[int] = self._tokenizer(self._prompt(step.instruction, grid))["input_ids"]
        return ids, torch.cat(patches), grid

    def _pooled(self, steps: Sequence[tuple[list[int], torch.Tensor, torch.Tensor]], length: int) -> torch.Tensor:
        """Run one forward over prepared steps, padded to `length` tokens; returns float16 [steps, 1, width]."""
        # What stands in the padding reaches nothing: attention is causal, and the mean leaves it out.
        ids = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens, _, _ in steps], device=self._device)
        mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _, _ in steps])
        mask = mask.to(self._device)
        hidden = self._model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == self._model.config.image_token_id).int(),
            pixel_values=torch.cat([patches for _, patches, _ in steps]),
            image_grid_thw=torch.cat([grid for _, _, grid in steps]),
            use_cache=False,
        ).last_hidden_state
        # Each row by itself, so that the mean sums up the same numbers in the same order as it would for one step.
        rows = [hidden[row : row + 1, : len(steps[row][0])].mean(dim=1, keepdim=True) for row in range(len(steps))]
        return torch.cat(rows).to(torch.float16)

    def _patches(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._spec.preprocess.patchify(self._table(image.to(self._device)[None])[0])

    def _prompt(self, instruction: str, grid: torch.Tensor) -> str:
        """Return the chat text with one placeholder per image token that the model will make."""
        content = [{"type": "image"}] * len(grid) + [{"type": "text", "text": instruction}]
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._spec.chat_template,
            tokenize=False,
            add_generation_prompt=False,
        )
        pieces = text.split(IMAGE_PLACEHOLDER)
        if len(pieces) != len(grid) + 1:
            raise EncoderError(
                f"the prompt has {len(pieces) - 1} image placeholders for {len(grid)} images; the instruction must not "
                f"hold {IMAGE_PLACEHOLDER}, and the chat template must write one per image"
            )
        counts = (grid.prod(dim=1) // self._merge).tolist()
        expanded = [piece + IMAGE_PLACEHOLDER * count for piece, count in zip(pieces, counts, strict=False)]
        return "".join(expanded) + pieces[-1]


def qwen2_5_vl_spec(
    model: str,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    micro_batch: int | None = None,
) -> Qwen25VlSpec:
    """Describe `model`: `small`, a Qwen2.5-VL checkpoint folder, or a hub id.

    Raises:
        EncoderError: there is no such model, it is no complete Qwen2.5-VL checkpoint, or `micro_batch` is below 1.
    """
    if micro_batch is not None and micro_batch < 1:
        raise EncoderError(f"micro_batch must be at least 1, got {micro_batch}")
    micro_batch = None if micro_batch == 1 else micro_batch  # one step at a time is what happens anyway
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    quiet_transformers()
    from transformers import Qwen2_5_VLConfig

    if model == "small":
        return Qwen25VlSpec(
            family="qwen2_5_vl",
            preprocess=QwenImagePreprocess.from_config(small_models.QWEN_PROCESSOR, **bounds),
            architecture_json=_architecture_json(Qwen2_5_VLConfig(**small_models.QWEN)),
            width=int(small_models.QWEN["text_config"]["hidden_size"]),  # type: ignore[index]
            dtype=checked_dtype(dtype or "float32"),
            chat_template=small_models.QWEN_CHAT_TEMPLATE,
            tokenizer_sha256=tokenizer_digest(small_models.byte_tokenizer()),
            folder=None,
            micro_batch=micro_batch,
        )
    folder, config = find_qwen2_5_vl(model, revision)
    parsed, tokenizer = Qwen2_5_VLConfig.from_dict(config), load_tokenizer(folder)
    return Qwen25VlSpec(
        family="qwen2_5_vl",
        preprocess=QwenImagePreprocess.from_config(read_json(folder, "preprocessor_config.json"), **bounds),
        architecture_json=_architecture_json(parsed),
        width=int(parsed.text_config.hidden_size),
        dtype=checked_dtype(dtype or stored_dtype(folder, config)),
        chat_template=_chat_template(folder, tokenizer),
        tokenizer_sha256=tokenizer_digest(tokenizer),
        folder=folder,
        micro_batch=micro_batch,
    )


def _batch_rule(micro_batch: int | None) -> str:
    if micro_batch is None:
        return "one unpadded forward per step"
    return f"{micro_batch} consecutive steps of an episode per forward, padded on the right, mean over own tokens"


def find_qwen2_5_vl(model: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the configuration of a Qwen2.5-VL checkpoint.

    Raises:
        EncoderError: there is no such model, it is another one, or it has no weights.
    """
    folder = find_checkpoint(model, revision)
    config = read_json(folder, "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise EncoderError(f"{model} is no Qwen2.5-VL checkpoint: its model_type is {config.get('model_type')!r}")
    tensor_files(folder)  # fails early on a folder without weights
    return folder, config


def _architecture_json(config: Any) -> str:
    """Return what changes the numbers of a parsed configuration, in whichever version of transformers it was saved."""
    text, kinds = _facts(config.text_config, TEXT_KEYS), enumerate(config.text_config.layer_types)
    text["sliding_layers"] = [layer for layer, kind in kinds if kind != "full_attention"]
    return json.dumps({"vision": _facts(config.vision_config, VISION_KEYS), "text": text}, sort_keys=True)


def vision_architecture_sha256(vision_config: Any) -> str:
    """Return the SHA-256 (hex) of what changes the numbers of a vision tower's parsed configuration."""
    return hashlib.sha256(json.dumps(_facts(vision_config, VISION_KEYS), sort_keys=True).encode()).hexdigest()


def _facts(part: Any, keys: Sequence[str]) -> dict[str, Any]:
    found = {key: getattr(part, key, None) for key in keys}
    # Older files say the type twice, and the old name is read only where the new one is missing.
    rope = {name: value for name, value in (found["rope_parameters"] or {}).items() if name != "type"}
    return {**found, "rope_parameters": rope}


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 (hex) of what a loaded tokenizer makes ids by: vocabulary, merges, added tokens, its steps.

    How its files are laid out does not matter.

    Raises:
        EncoderError: it is none of the library tokenizers, so that nothing tells what it does.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise EncoderError(f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers")
    whole = json.loads(backend.to_str())
    facts = {name: whole[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")}
    facts["special_tokens"] = tokenizer.special_tokens_map  # chat templates may name them
    facts["split_special_tokens"] = tokenizer.split_special_tokens
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """Return the template that the checkpoint's processor uses: its own file, else the tokenizer's."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(read_json(folder, "chat_template.json").get("chat_template", ""))
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise EncoderError(f"{folder} has no chat template, neither of its own nor in the tokenizer's configuration")
    return template


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:
        raise EncoderError(f"{folder} has no usable tokenizer: {first_line(exc)}") from exc


def _load_model(folder: Path, dtype: str) -> Any:
    from transformers import Qwen2_5_VLModel

    return load_complete(Qwen2_5_VLModel.from_pretrained, folder, dtype=dtype, attention=ATTENTION)


def _small_model(dtype: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLModel._from_config(Qwen2_5_VLConfig(**small_models.QWEN), attn_implementation=ATTENTION)
    small_models.fill_from_seed(model, seed=0, dtype=DTYPES[dtype])
    return model
