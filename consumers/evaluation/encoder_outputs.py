"""Encoded media for models of transformers that take `mm_encoder_outputs`: from the store, or computed and kept.

What these models' encoders give lies behind their own projection, so that only they can build it: a miss is computed
live and kept, unless it is to be an error.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from cache_store import FeatureStore
from consumers.evaluation.cached_tower import OnDifference, difference_of, is_chosen, require_echo
from consumers.evaluation.errors import EchoDifference, EvaluationError, FeatureMissing, FeatureUnfit, NoVisionTower
from consumers.evaluation.fitting import TowerIdentity
from consumers.evaluation.live_tower import TowerFacts, require_own_dtype
from consumers.evaluation.statistics import CacheStatistics
from consumers.evaluation.stored_features import OnMiss, OnStale, StoredFeatures
from pipeline.encoders.live_weights import WeightMarks, adapter_states

Modality = Literal["image", "video"]
_T = TypeVar("_T")
_GRID = {"image": "image_grid_thw", "video": "video_grid_thw"}
# What models read of an encoder's output beside its tokens, in families whose decoders take more than those.
_PLAIN = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


@dataclass(frozen=True, eq=False)
class EncodedMedia:
    """What the model is to be called with, beside its ids: `model(input_ids=..., **encoded.inputs)`."""

    inputs: dict[str, Any]  # mm_encoder_outputs, and the grid where the model counts positions by it
    is_hit: bool


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What the encoder gave for one medium."""

    tokens: torch.Tensor  # [tokens, width]
    grid_thw: list[list[int]]  # empty where the model counts no positions by a grid
    is_batch: bool  # the model takes [1, tokens, width] instead of a tuple


class CachedEncoderOutputs:
    """Encoded videos (or images) of one model, by id. Models whose encoder gives more than one tensor `[tokens, width]`
    for each of them, such as Qwen3-VL with its further layers, are refused.

    Args:
        model: of transformers 5.18 or newer, whose forward has `mm_encoder_outputs`.
        model_signature: names the model in the store, as `cache_store.model_signature(name, layer)` makes it.
        preprocess: how pixels are made, as JSON: the processor's sizes, the rate of frames. It is part of the recipe,
            and other pixels are other features: who gives none gets those that were kept without, and so with
            `sampling`.
        store, dataset, nframe, sampling, on_miss, on_stale, echo, on_difference, statistics: as in
            `CachedVisionTower`; misses are kept by default.

    Raises:
        NoVisionTower: the model takes no `mm_encoder_outputs`, or has no encoder for the modality.
        EvaluationError: there is no store, and nothing is to be kept.
        ValueError: `on_miss`, `on_stale` or `on_difference` is no word for it, or `echo` no share.
    """

    def __init__(
        self,
        model: Any,
        store: FeatureStore | str | Path,
        *,
        dataset: str,
        model_signature: str,
        nframe: int = 128,
        modality: Modality = "video",
        preprocess: Mapping[str, Any] | None = None,
        sampling: str | None = None,
        on_miss: OnMiss = "keep",
        on_stale: OnStale = "error",
        echo: float = 0.0,
        on_difference: OnDifference = "raise",
        statistics: CacheStatistics | None = None,
    ) -> None:
        require_echo(echo, on_difference)
        encode = getattr(model, f"get_{modality}_features", None)
        if encode is None or "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise NoVisionTower(
                f"{type(model).__name__} takes no mm_encoder_outputs, or has no encoder for {modality}s"
            )
        module = _encoder_of(model)
        self._module, self._encode, self._modality, self._grid = module, encode, modality, _GRID[modality]
        self._has_grid = self._grid in inspect.signature(model.forward).parameters
        self.stored = StoredFeatures(
            store,
            TowerIdentity(
                lambda: _without_language_model(_inner(model).state_dict().items()),
                lambda: _marks(_inner(model)),
                lambda: _facts(module, modality),
                preprocess=preprocess,
                sampling=sampling,
                is_all_told=True,
            ),
            dataset=dataset,
            nframe=nframe,
            model_signature=model_signature,
            on_miss=on_miss,
            on_stale=on_stale,
        )
        self.statistics = CacheStatistics() if statistics is None else statistics
        self._echo, self._on_difference = echo, on_difference

    @property
    def _device(self) -> torch.device:
        """Where the encoder is now: the model may be moved."""
        device: torch.device = next(self._module.parameters()).device
        return device

    def encoded(
        self,
        media_id: str,
        live: Callable[[], Mapping[str, torch.Tensor]],
        *,
        dataset: str | None = None,
        nframe: int | None = None,
    ) -> EncodedMedia:
        """Return one video encoded; `live`, for misses and echoes, decodes it into the arguments of its encoder.

        For Qwen2.5-VL these are `pixel_values_videos` and `video_grid_thw`, as its processor makes them.

        Raises:
            RecipeMismatch, FeatureMissing, FeatureUnfit, StoreReadError: as `CachedVisionTower.request`.
            EvaluationError: `torch.autocast` is on, or the encoder gives what cannot be kept.
            EchoDifference: the live encoder gives other bits.
        """
        require_own_dtype(self._device)
        key = self.stored.key(media_id, dataset=dataset, nframe=nframe)
        started = time.perf_counter()
        try:
            value = self.stored.read(key)
        except FeatureMissing:
            self.statistics.add(misses=1)
            raise
        self.statistics.add(read_s=time.perf_counter() - started, hits=value is not None, misses=value is None)
        if value is None:
            made = self._live(live)
            if self.stored.on_miss == "keep":
                wanted = self.stored.identity.facts.dtype
                if made.tokens.dtype != wanted:
                    raise EvaluationError(f"the encoder has weights in {wanted} and gave {made.tokens.dtype}")
                self.stored.keep(key, made.tokens, grid_thw=made.grid_thw, is_batch=made.is_batch)
            return self._ready(made, is_hit=False)
        found = _Encoded(value["vision_features"], value.get("grid_thw", []), bool(value.get("is_batch")))
        if self._has_grid and not found.grid_thw:
            raise FeatureUnfit(
                f"{media_id} is stored without the grid by which {self._grid} tells the model its positions"
            )
        if is_chosen(media_id, self._echo):
            self._compare(media_id, found.tokens, self._live(live).tokens)
        return self._ready(found, is_hit=True)

    def _ready(self, encoded: _Encoded, *, is_hit: bool) -> EncodedMedia:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tokens = encoded.tokens.to(self._device)
        output = BaseModelOutputWithPooling(pooler_output=tokens[None] if encoded.is_batch else (tokens,))
        inputs: dict[str, Any] = {"mm_encoder_outputs": {self._modality: output}}
        if encoded.grid_thw:
            inputs[self._grid] = torch.tensor(encoded.grid_thw, device=self._device)
        return EncodedMedia(inputs, is_hit)

    @torch.inference_mode()
    def _live(self, live: Callable[[], Mapping[str, torch.Tensor]]) -> _Encoded:
        started = time.perf_counter()
        arguments = {name: value.to(self._device) for name, value in live().items()}
        decoded = time.perf_counter()
        output = self._encode(**arguments, return_dict=True)
        more = [name for name, value in output.items() if value is not None and name not in _PLAIN]
        if more or len(output.pooler_output) != 1:
            raise EvaluationError(
                f"the encoder gives {', '.join(more) or f'{len(output.pooler_output)} media'} beside one tensor of "
                "tokens; only one medium at a time, of models whose decoders take nothing but tokens, can be kept"
            )
        tokens = output.pooler_output[0]
        if tokens.is_cuda:
            torch.cuda.synchronize()
        self.statistics.add(pixels_s=decoded - started, live_s=time.perf_counter() - decoded)
        grid = arguments.get(self._grid)
        return _Encoded(tokens, [] if grid is None else grid.tolist(), isinstance(output.pooler_output, torch.Tensor))

    def _compare(self, media_id: str, stored: torch.Tensor, live: torch.Tensor) -> None:
        what = difference_of(stored, live)
        self.statistics.add(echoes=1, echo_differences=what is not None)
        if what is not None and self._on_difference == "raise":
            raise EchoDifference(media_id, what)


def _encoder_of(model: Any) -> torch.nn.Module:
    """Return the module with the weights that the features depend on."""
    for owner in (getattr(model, "model", None), model):
        for name in ("visual", "vision_tower", "vision_model"):
            found = getattr(owner, name, None)
            if isinstance(found, torch.nn.Module):
                return found
    raise NoVisionTower(f"{type(model).__name__} has no visual, vision_tower or vision_model")


def _inner(model: Any) -> torch.nn.Module:
    inner: torch.nn.Module = getattr(model, "model", model)
    return inner


def _named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _marks(module: torch.nn.Module) -> WeightMarks:
    adapters = adapter_states(_without_language_model(module.named_modules()).values())
    return WeightMarks(_without_language_model(_named_tensors(module)).values(), adapters)


def _without_language_model(named: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Return all others: projection and newline tokens are in the features too."""
    return {name: tensor for name, tensor in named if not name.startswith("language_model.")}


def _facts(module: Any, modality: Modality) -> TowerFacts:
    return TowerFacts(
        dtype=next(module.parameters()).dtype,
        layer=None,
        feature=None,
        attention=getattr(module.config, "_attn_implementation", None),
        image_size=(0, 0),
        tokens=None,
        width=None,
        dimensions=2,
        tap_point="encoder_output" if modality == "video" else f"{modality}_encoder_output",
    )
