"""LongVA's vision tower: a CLIP tower's hidden state before the projector, without the class token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    tensor_files,
)
from pipeline.encoders.vision_tower import (
    ATTENTION,
    TowerEncoder,
    check_complete,
    checked_frames_per_forward,
    compile_facts,
)
from pipeline.errors import EncoderError
from pipeline.vision.preprocessing import ClipLikePreprocess

LONGVA_PREFIX = "model.vision_tower.vision_tower.vision_model."
CLIP_PREFIX = "vision_model."

# The checkpoint names this tower by its hub id; its facts are public and fixed, so nothing is fetched for
# them.
OPENAI_336 = "openai/clip-vit-large-patch14-336"
OPENAI_336_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
OPENAI_336_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
}
ARCHITECTURE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class _Tower:
    """Where a tower's facts were found."""

    name: str  # as it goes into the signature
    vision: dict[str, Any]  # CLIPVisionConfig's arguments
    processor: dict[str, Any]  # preprocessor_config.json
    folder: Path | None  # holds the tensors; None for the small model
    prefix: str  # of the tower's tensors
    layer: int = -2
    feature: str = "patch"


@dataclass(frozen=True)
class LongvaSpec(DigestedWeights):
    """See `pipeline.encoders.base.VideoEncoderSpec`. Made by `longva_spec`."""

    family: str
    model_signature: str
    preprocess: ClipLikePreprocess
    architecture: Mapping[str, Json]
    select_layer: int
    select_feature: Literal["patch", "cls_patch"]
    dtype: str
    frames_per_forward: int | None
    is_compiled: bool
    folder: Path | None
    prefix: str

    def recipe(self) -> Mapping[str, Json]:
        """Return everything about the model that changes the numbers, the weights' digest included.

        The first call reads the tower's tensors once; the digest then travels with the spec.
        """
        return {
            "family": self.family,
            "tap_point": "vision_tower",
            "weights_sha256": self._weights_digest,
            "architecture": dict(self.architecture),
            "layer": self.select_layer,
            "feature": self.select_feature,
            "preprocess": self.preprocess.recipe(),
            "dtype": self.dtype,
            "frames_per_forward": self.frames_per_forward,
            "attention": ATTENTION,
            **compile_facts(self.is_compiled),
        }

    def feature_shape(self, num_frames: int) -> tuple[int, int, int]:
        """Return [frames, tokens, width] of the feature of a video of `num_frames` sampled frames."""
        tokens = (self.architecture["image_size"] // self.architecture["patch_size"]) ** 2
        tokens += self.select_feature == "cls_patch"
        return num_frames, int(tokens), int(self.architecture["hidden_size"])

    def feature_bytes(self, num_frames: int) -> int:
        """Return the payload bytes of the feature of a video of `num_frames` sampled frames."""
        return math.prod(self.feature_shape(num_frames)) * DTYPES[self.dtype].itemsize

    def load(self, device: str) -> TowerEncoder:
        """Load the tower on `device`, in evaluation mode.

        Raises:
            EncoderError: tensors are missing, of another shape, unknown to the architecture or not those of the recipe.
        """
        quiet_transformers()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(**self.architecture, attn_implementation=ATTENTION)
        if self.folder is None:
            tower = _small_tower(config, self.dtype)
        else:
            with self._as_digested():
                tower, info = CLIPVisionModel.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(self._tensors()),
                    dtype=DTYPES[self.dtype],
                    attn_implementation=ATTENTION,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported, and refused below by name
                )
            check_complete(f"the vision tower in {self.folder}", info)
            if info["unexpected_keys"]:
                named = ", ".join(sorted(info["unexpected_keys"])[:5])
                raise EncoderError(f"the vision tower in {self.folder} has tensors that CLIP does not know: {named}")
        _drop_layers_after(tower, self.select_layer)
        return TowerEncoder(
            tower,
            device=device,
            dtype=self.dtype,
            table=self.preprocess.table(),
            frames_per_forward=self.frames_per_forward,
            is_compiled=self.is_compiled,
            select=_patches if self.select_feature == "patch" else _all_tokens,
        )

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tower's tensors as stored, under CLIP's own names without any prefix."""
        if self.folder is None:
            from transformers import CLIPVisionConfig

            state = _small_tower(CLIPVisionConfig(**self.architecture), "float32").state_dict()
            yield from ((name.removeprefix(CLIP_PREFIX), tensor) for name, tensor in state.items())
            return
        files = tensor_files(self.folder)
        for name, tensor in read_tensors(files, _tower_names(files, self.prefix)):
            yield name.removeprefix(self.prefix), tensor


def longva_spec(
    model: str,
    *,
    dtype: str | None = None,
    select_layer: int | None = None,
    select_feature: str | None = None,
    frames_per_forward: int | None = None,
    is_compiled: bool = False,
    revision: str | None = None,
) -> LongvaSpec:
    """Describe the tower of `model`: `small`, a CLIP folder or hub id, or a LongVA checkpoint folder.

    Raises:
        EncoderError: there is no such model, it holds no CLIP tower, or an option does not fit it.
    """
    tower = _find_tower(model, revision)
    quiet_transformers()
    from transformers import CLIPVisionConfig

    try:
        config = CLIPVisionConfig(**{k: v for k, v in tower.vision.items() if k in ARCHITECTURE_KEYS})
    except (TypeError, ValueError) as exc:
        raise EncoderError(f"{model}: its vision configuration is not CLIP's: {exc}") from exc
    layer = tower.layer if select_layer is None else select_layer
    states = config.num_hidden_layers + 1
    if not -states <= layer < states:
        raise EncoderError(f"layer {layer} does not exist; {model} has hidden states {-states} to {states - 1}")
    feature = select_feature or tower.feature
    if feature not in ("patch", "cls_patch"):
        raise EncoderError(f"select_feature {feature!r} is unknown; choose patch or cls_patch")
    preprocess = ClipLikePreprocess.from_config(tower.processor)
    if (preprocess.height, preprocess.width) != (config.image_size, config.image_size):
        raise EncoderError(
            f"{model}: its processor makes {preprocess.height}x{preprocess.width} images, the tower takes "
            f"{config.image_size}x{config.image_size}"
        )
    if tower.folder is not None and not _tower_names(tensor_files(tower.folder), tower.prefix):
        raise EncoderError(f"{tower.folder} holds no vision tower: no tensor is named {tower.prefix}*")
    return LongvaSpec(
        family="longva",
        model_signature=model_signature(tower.name, layer),
        preprocess=preprocess,
        architecture={key: getattr(config, key) for key in ARCHITECTURE_KEYS},
        select_layer=layer,
        select_feature=feature,  # type: ignore[arg-type]
        dtype=checked_dtype(dtype or "float16"),
        frames_per_forward=checked_frames_per_forward(frames_per_forward),
        is_compiled=is_compiled,
        folder=tower.folder,
        prefix=tower.prefix,
    )


def _find_tower(model: str, revision: str | None) -> _Tower:
    if model == "small":
        return _Tower("small", small_models.CLIP_VISION, small_models.CLIP_PROCESSOR, None, "")
    folder = find_checkpoint(model, revision)
    config = read_json(folder, "config.json")
    if "mm_vision_tower" in config:
        return _tower_of_longva(folder, config)
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise EncoderError(
            f"{model} is neither a LongVA checkpoint (no mm_vision_tower in config.json) nor a CLIP model (model_type "
            f"{config.get('model_type')!r})"
        )
    vision = _vision_part(config)
    name = model.rstrip("/").rsplit("/", 1)[-1]
    # transformers 5 saves a vision-only CLIP without the prefix that transformers 4 gave it.
    is_bare = "vision_config" not in config and not _tower_names(tensor_files(folder), CLIP_PREFIX)
    prefix = "" if is_bare else CLIP_PREFIX
    return _Tower(name, vision, read_json(folder, "preprocessor_config.json"), folder, prefix)


def _tower_of_longva(folder: Path, config: dict[str, Any]) -> _Tower:
    name = str(config["mm_vision_tower"])
    layer = int(config.get("mm_vision_select_layer", -2))
    feature = str(config.get("mm_vision_select_feature", "patch"))
    places = [place for place in (folder / name, Path(name).expanduser()) if (place / "config.json").is_file()]
    if places:
        vision = _vision_part(read_json(places[0], "config.json"))
        processor = read_json(places[0], "preprocessor_config.json")
    elif name == OPENAI_336:
        vision, processor = OPENAI_336_VISION, OPENAI_336_PROCESSOR
    else:
        raise EncoderError(
            f"{folder} names the vision tower {name!r}; config.json and preprocessor_config.json were looked for in "
            f"{folder / name} and {Path(name).absolute()}, and only {OPENAI_336} is built in"
        )
    return _Tower(name, vision, processor, folder, LONGVA_PREFIX, layer, feature)


def _vision_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return the vision half of a CLIP configuration, or a vision-only one as it is."""
    vision = config.get("vision_config", config)
    if not isinstance(vision, dict):
        raise EncoderError("config.json: vision_config is no object")
    return vision


def _tower_names(files: dict[str, Path], prefix: str) -> list[str]:
    # Old checkpoints store the position numbers 0..n, which newer code computes.
    return [name for name in files if name.startswith(prefix) and not name.endswith("position_ids")]


def _small_tower(config: Any, dtype: str) -> torch.nn.Module:
    from transformers import CLIPVisionModel

    with torch.random.fork_rng(devices=[]):
        tower: torch.nn.Module = CLIPVisionModel(config)
    small_models.fill_from_seed(tower, seed=0, dtype=DTYPES[dtype])
    return tower


def _drop_layers_after(tower: Any, layer: int) -> None:
    """Cut the tower behind `hidden_states[layer]`, so that this state becomes its last: same numbers, less work.

    CLIP's last hidden state is taken before its final norm, as every entry of hidden_states is.
    """
    encoder = getattr(tower, "vision_model", tower).encoder
    kept = layer if layer >= 0 else len(encoder.layers) + 1 + layer
    encoder.layers = encoder.layers[:kept]


def _patches(states: torch.Tensor) -> torch.Tensor:
    return states[:, 1:]


def _all_tokens(states: torch.Tensor) -> torch.Tensor:
    return states
