"""Any vision tower that transformers' AutoModel loads: the last hidden state of its vision part, all tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_store import model_signature
from pipeline.encoders import small_models
from pipeline.encoders.base import Json
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
from pipeline.encoders.vision_tower import (
    ATTENTION,
    TowerEncoder,
    checked_frames_per_forward,
    compile_facts,
    load_complete,
)
from pipeline.errors import EncoderError, first_line
from pipeline.vision.preprocessing import ClipLikePreprocess

VISION_PREFIX = "vision_model."

# Facts about the file or the training, not about the numbers of a forward.
CONFIG_KEYS_LEFT_OUT = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
)

# Weights behind the last hidden state: a checkpoint may lack them.
BEHIND_THE_FEATURE = (
    "pooler",
    "vision_model.head.",
    "text_model.",
    "logit_scale",
    "logit_bias",
    "_projection.",
)


@dataclass(frozen=True)
class HuggingfaceSpec(DigestedWeights):
    """See `pipeline.encoders.base.VideoEncoderSpec`. Made by `huggingface_spec`."""

    family: str
    model_signature: str
    preprocess: ClipLikePreprocess
    config_json: str  # the vision part of config.json, keys sorted
    tokens: int  # per frame
    width: int
    dtype: str
    frames_per_forward: int | None
    is_compiled: bool
    folder: Path | None  # None for the small model

    def recipe(self) -> Mapping[str, Json]:
        """Return everything about the model that changes the numbers, the weights' digest included.

        The first call reads the vision part's tensors once; the digest then travels with the spec.
        """
        return {
            "family": self.family,
            "tap_point": "vision_tower",
            "weights_sha256": self._weights_digest,
            "architecture": json.loads(self.config_json),
            "layer": -1,
            "feature": "all_tokens",
            "preprocess": self.preprocess.recipe(),
            "dtype": self.dtype,
            "frames_per_forward": self.frames_per_forward,
            "attention": ATTENTION,
            **compile_facts(self.is_compiled),
        }

    def feature_shape(self, num_frames: int) -> tuple[int, int, int]:
        """Return [frames, tokens, width] of the feature of a video of `num_frames` sampled frames."""
        return num_frames, self.tokens, self.width

    def feature_bytes(self, num_frames: int) -> int:
        """Return the payload bytes of the feature of a video of `num_frames` sampled frames."""
        return num_frames * self.tokens * self.width * DTYPES[self.dtype].itemsize

    def load(self, device: str) -> TowerEncoder:
        """Load the tower on `device`, in evaluation mode.

        Raises:
            EncoderError: tensors are missing, of another shape, or not those of the recipe; so with the configuration.
        """
        quiet_transformers()
        with self._as_digested():
            tower = _small_tower(self.dtype) if self.folder is None else _load_tower(self.folder, self.dtype)
        if self.folder is not None and _config_json(read_json(self.folder, "config.json")) != self.config_json:
            raise EncoderError(f"the configuration in {self.folder} has changed since it was read for the recipe")
        return TowerEncoder(
            tower,
            device=device,
            dtype=self.dtype,
            table=self.preprocess.table(),
            frames_per_forward=self.frames_per_forward,
            is_compiled=self.is_compiled,
            select=_all_tokens,
        )

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the vision part's tensors as stored, without prefix."""
        if self.folder is None:
            yield from _small_tower("float32").state_dict().items()
            return
        files = tensor_files(self.folder)
        names = [name for name in files if not name.endswith("position_ids")]
        if any(VISION_PREFIX in name for name in names):
            names = [name for name in names if VISION_PREFIX in name]
        for name, tensor in read_tensors(files, names):
            yield name.rsplit(VISION_PREFIX, 1)[-1], tensor


def huggingface_spec(
    model: str,
    *,
    dtype: str | None = None,
    frames_per_forward: int | None = None,
    is_compiled: bool = False,
    revision: str | None = None,
) -> HuggingfaceSpec:
    """Describe the vision part of `model`: `small` (a small DINOv2), a checkpoint folder, or a hub id.

    Raises:
        EncoderError: there is no such model, it sees no images, or its images have no fixed size.
    """
    folder = None if model == "small" else find_checkpoint(model, revision)
    config: dict[str, Any] = small_models.DINOV2 if folder is None else read_json(folder, "config.json")
    processor = small_models.DINOV2_PROCESSOR if folder is None else read_json(folder, "preprocessor_config.json")
    quiet_transformers()
    preprocess = ClipLikePreprocess.from_config(processor)
    tokens, width = _feature_shape(model, config, preprocess)
    if folder is not None:
        tensor_files(folder)  # fails early on a folder without weights
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return HuggingfaceSpec(
        family="huggingface",
        model_signature=model_signature(name, -1),
        preprocess=preprocess,
        config_json=_config_json(config),
        tokens=tokens,
        width=width,
        dtype=checked_dtype(dtype or ("float32" if folder is None else stored_dtype(folder, config))),
        frames_per_forward=checked_frames_per_forward(frames_per_forward),
        is_compiled=is_compiled,
        folder=folder,
    )


def _config_json(config: dict[str, Any]) -> str:
    vision = config.get("vision_config") or config
    return json.dumps({key: value for key, value in vision.items() if key not in CONFIG_KEYS_LEFT_OUT}, sort_keys=True)


def _feature_shape(model: str, config: dict[str, Any], preprocess: ClipLikePreprocess) -> tuple[int, int]:
    """Return tokens and width of one frame's feature, from a forward without numbers (meta device)."""
    from transformers import AutoConfig, AutoModel

    try:
        built = AutoConfig.for_model(**config)
        with torch.device("meta"), torch.no_grad():
            tower = _vision_part(AutoModel.from_config(built, attn_implementation=ATTENTION), model)
            pixels = torch.empty(1, 3, preprocess.height, preprocess.width)
            shape = tower.eval()(pixel_values=pixels).last_hidden_state.shape
    except EncoderError:
        raise
    # An unknown model_type, wrong settings, an image size that the model refuses: every class has its own
    # error.
    except Exception as exc:
        raise EncoderError(f"{model} does not work as a vision encoder: {first_line(exc)}") from exc
    if len(shape) != 3:
        raise EncoderError(f"{model} gives {len(shape) - 1} dimensions per frame, expected tokens and width")
    return int(shape[1]), int(shape[2])


def _vision_part(loaded: Any, model: str) -> Any:
    tower = getattr(loaded, "vision_model", loaded)
    if getattr(tower, "main_input_name", None) != "pixel_values":
        raise EncoderError(f"{model} is a {type(loaded).__name__}, which has no vision part that takes pixel_values")
    return tower


def _load_tower(folder: Path, dtype: str) -> Any:
    from transformers import AutoModel

    loaded = load_complete(
        AutoModel.from_pretrained, folder, dtype=dtype, attention=ATTENTION, harmless=BEHIND_THE_FEATURE
    )
    return _vision_part(loaded, str(folder))


def _small_tower(dtype: str) -> Any:
    from transformers import AutoConfig, AutoModel

    with torch.random.fork_rng(devices=[]):
        tower = AutoModel.from_config(AutoConfig.for_model(**small_models.DINOV2), attn_implementation=ATTENTION)
    small_models.fill_from_seed(tower, seed=0, dtype=DTYPES[dtype])
    return tower


def _all_tokens(states: torch.Tensor) -> torch.Tensor:
    return states
