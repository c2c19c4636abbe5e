"""The vision tower of a live model: where it is, what it gives, and stored features in the very form that it gives.

Two kinds are known. Towers of LLaVA's own code, LongVA's among them, return features; those of transformers return
hidden states, of which the model then picks a layer and, perhaps, drops the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from consumers.evaluation.errors import EvaluationError, FeatureUnfit, NoVisionTower


@dataclass(frozen=True)
class TowerFacts:
    """What is known of a live tower without running it; None is unknown, and not compared."""

    dtype: torch.dtype
    layer: int | None
    feature: str | None  # patch, cls_patch or all_tokens, as in recipes
    attention: str | None
    image_size: tuple[int, int]  # height and width in pixels
    tokens: int | None  # of a frame's feature
    width: int | None
    dimensions: int = 3  # of a feature
    tap_point: str = "vision_tower"  # where in the model it is taken, as in recipes

    @property
    def drops_class_token(self) -> bool:
        """Whether the live features are a cut of what the tower computes."""
        return self.feature == "patch"


class LiveTower(Protocol):
    """A live tower, by its module and by the form of what it returns."""

    @property
    def module(self) -> torch.nn.Module: ...

    @property
    def facts(self) -> TowerFacts:
        """What is known of it now: a model may be moved to another dtype, or told to use another layer."""
        ...

    def images_of(self, *args: Any, **options: Any) -> Any:
        """Return the images among the arguments of a call."""
        ...

    def answer(self, features: torch.Tensor, images: Any) -> Any:
        """Return what the tower would for `images` if its features `[n, tokens, width]` were these."""
        ...

    def features_in(self, answer: Any) -> torch.Tensor:
        """Return the features `[n, tokens, width]` in what the tower returned."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureTower:
    """A tower whose forward takes images `[n, 3, h, w]`, or a list of `[3, h, w]`, and returns features.

    Source: `CLIPVisionTower` of LongVA's `clip_encoder.py`: features in the images' dtype; of a list, a list of
    `[1, tokens, width]`.
    """

    module: torch.nn.Module

    @property
    def facts(self) -> TowerFacts:
        return _facts(self.module, getattr(self.module, "select_layer", None), _feature_of(self.module))

    def images_of(self, images: Any) -> Any:
        return images

    def answer(self, features: torch.Tensor, images: Any) -> Any:
        check_rows(features, len(images))
        if isinstance(images, list):
            ready = _as_computed(features, self.facts, images[0].device)
            return [ready[i : i + 1].to(image.dtype) for i, image in enumerate(images)]
        return _as_computed(features, self.facts, images.device).to(images.dtype)

    def features_in(self, answer: Any) -> torch.Tensor:
        return torch.cat(answer) if isinstance(answer, list) else answer


@dataclass(frozen=True, eq=False)
class StatesTower:
    """A tower of transformers: the model reads `hidden_states[layer]` of what its forward returns."""

    module: torch.nn.Module
    config: Any  # the model's, which says what it takes of the hidden states

    @property
    def layer(self) -> int:
        """The hidden state that the model reads."""
        layer: int = self.config.vision_feature_layer
        return layer

    @property
    def facts(self) -> TowerFacts:
        is_cut = self.config.vision_feature_select_strategy == "default"
        return _facts(self.module, self.layer, "patch" if is_cut else _whole_feature(self.module))

    def images_of(self, pixel_values: Any, **options: Any) -> Any:
        return pixel_values

    def answer(self, features: torch.Tensor, images: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        check_rows(features, len(images))
        states = _states(features, self.facts, images.device)
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=_OneLayer(self.layer, states))

    def features_in(self, answer: Any) -> torch.Tensor:
        states: torch.Tensor = answer.hidden_states[self.layer]
        return states[:, 1:] if self.facts.drops_class_token else states


class _OneLayer(tuple[torch.Tensor, ...]):
    """Hidden states of which one is there, under the number that the model asks for."""

    layer: int

    def __new__(cls, layer: int, states: torch.Tensor) -> _OneLayer:
        made = super().__new__(cls, (states,))
        made.layer = layer
        return made

    def __getitem__(self, layer: Any) -> Any:
        if layer != self.layer:
            raise FeatureUnfit(f"hidden state {layer} is asked for, and the cache holds hidden state {self.layer}")
        return super().__getitem__(0)


def require_own_dtype(device: torch.device) -> None:
    """Refuse what would compute in another dtype than that of its weights, by which its features are known.

    Raises:
        EvaluationError: `torch.autocast` is on.
    """
    try:
        is_on = torch.is_autocast_enabled(device.type)
    except TypeError:  # before torch 2.4
        is_on = torch.is_autocast_enabled() if device.type == "cuda" else torch.is_autocast_cpu_enabled()
    if is_on:
        raise EvaluationError(
            "under torch.autocast the tower computes in another dtype than its weights have, by which cached features "
            "are known; load the model in the dtype that is wanted"
        )


def find_tower(model: Any) -> LiveTower:
    """Return the vision tower of a model.

    Looked for as `get_vision_tower()` (LLaVA's code, LongVA), then as `vision_tower` of the model or of its `model`
    (transformers' LLaVA, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision).

    Raises:
        NoVisionTower: there is none, it is not loaded, or the model joins several of its layers.
    """
    module = _module_of(model)
    if module is None:
        raise NoVisionTower(
            f"{type(model).__name__} has no get_vision_tower() and no vision_tower; for Qwen2.5-VL and others that "
            "take mm_encoder_outputs there is CachedEncoderOutputs"
        )
    if not list(module.parameters()):
        raise NoVisionTower(f"the vision tower of {type(model).__name__} is not loaded")
    if hasattr(module, "select_layer") or not hasattr(_config_of(model), "vision_feature_layer"):
        return FeatureTower(module)
    config = _config_of(model)
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise NoVisionTower(f"{type(model).__name__} joins the layers {layer} of its tower; features hold one layer")
    return StatesTower(module, config)


def check_rows(features: torch.Tensor, wanted: int) -> None:
    """Check that there is one row of features for each image.

    Raises:
        FeatureUnfit: there is not.
    """
    if len(features) != wanted:
        raise FeatureUnfit(
            f"the tower was called on {wanted} images, and the cached features have {len(features)} rows; on a hit "
            "pass what request.pixels() returns, as it is"
        )


def _module_of(model: Any) -> torch.nn.Module | None:
    if hasattr(model, "get_vision_tower"):
        found = model.get_vision_tower()
        # Under FSDP LLaVA's code keeps it in a list, so that it is no submodule.
        tower: torch.nn.Module | None = found[0] if isinstance(found, list) else found
        return tower
    for owner in (model, getattr(model, "model", None)):
        found = getattr(owner, "vision_tower", None)
        if isinstance(found, torch.nn.Module):
            return found
    return None


def _config_of(model: Any) -> Any:
    return getattr(model, "config", None)


def _feature_of(tower: Any) -> str | None:
    feature = getattr(tower, "select_feature", None)
    return feature if feature in ("patch", "cls_patch") else None


def _whole_feature(tower: Any) -> str:
    return "cls_patch" if "clip" in str(getattr(tower.config, "model_type", "")) else "all_tokens"


def _facts(module: Any, layer: int | None, feature: str | None) -> TowerFacts:
    # LLaVA's code wraps transformers' tower into one of its own.
    inner = getattr(module, "vision_tower", module)
    config = getattr(inner, "config", None)
    size: Sequence[int] | int = getattr(config, "image_size", getattr(module, "image_size", 0))
    height, width = (size, size) if isinstance(size, int) else size
    patch = getattr(config, "patch_size", None)
    tokens = None
    if feature in ("patch", "cls_patch") and isinstance(patch, int):
        tokens = (height // patch) * (width // patch) + (feature == "cls_patch")
    return TowerFacts(
        dtype=next(inner.parameters()).dtype,
        layer=layer,
        feature=feature,
        attention=getattr(config, "_attn_implementation", None),
        image_size=(height, width),
        tokens=tokens,
        width=getattr(config, "hidden_size", None),
    )


def _states(features: torch.Tensor, facts: TowerFacts, device: torch.device) -> torch.Tensor:
    """Return `[n, tokens, width]` with a place for the class token where the live model cuts it off."""
    if not facts.drops_class_token:
        return features.to(device)
    rows, tokens, width = features.shape
    states = torch.empty(rows, tokens + 1, width, dtype=features.dtype, device=device)
    states[:, 0] = torch.nan  # nobody reads it; who does shall see it
    states[:, 1:] = features.to(device)
    return states


def _as_computed(features: torch.Tensor, facts: TowerFacts, device: torch.device) -> torch.Tensor:
    """Return the features with the strides of the live ones.

    A linear layer takes another path for a cut tensor than for a contiguous one, and may round otherwise there.
    """
    states = _states(features, facts, device)
    return states[:, 1:] if facts.drops_class_token else states
