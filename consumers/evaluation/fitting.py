"""Whether a stored feature is what a live tower would compute: its recipe held against what is known of the tower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cache_store import int8
from cache_store.recipes import differences
from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.live_tower import TowerFacts
from pipeline.encoders.checkpoint import read_tensors, tensor_files, weights_digest
from pipeline.encoders.live_weights import WeightMarks, live_digest
from pipeline.errors import EncoderError
from pipeline.recipe import RECIPE_VERSION
from pipeline.vision import SamplingRule

Recipe = Mapping[str, Any]
Doubts = tuple[bool, bool, bool, int]  # the fewer, the sooner a recipe is taken

_BY_THE_CALLER = "the caller's"  # sampling of which nothing is known
# Architectures whose last hidden state is the last of their hidden states; others have a norm between the two.
_WITHOUT_LAST_NORM = {"clip_vision_model"}
# What a live tower may lack of its checkpoint: no hidden state depends on it.
_BEHIND_THE_FEATURES = ("head.", "pooler.", "post_layernorm.")

logger = logging.getLogger("consumers.evaluation")


class TowerIdentity:
    """What tells one tower from another: facts, and the digest of its weights, which is computed when first asked for
    and again when they have changed.

    `state` gives the weights by name, `marks` what shows whether they changed, `facts` those of now. `checkpoint` is
    the folder from which the model was loaded: a recipe has the digest of the tensors as they were on disk, so a model
    that was loaded in another dtype can only be told by that folder, as long as it holds the folder's weights.
    `preprocess` and `sampling` are compared where they are given, and where `is_all_told` also where they are not: then
    a recipe that has them is another.
    """

    def __init__(
        self,
        state: Callable[[], Mapping[str, torch.Tensor]],
        marks: Callable[[], WeightMarks],
        facts: Callable[[], TowerFacts],
        *,
        checkpoint: Path | None = None,
        preprocess: Mapping[str, Any] | None = None,
        sampling: str | None = None,
        is_all_told: bool = False,
    ) -> None:
        self._facts, self._state, self._marks, self._checkpoint = facts, state, marks, checkpoint
        self._preprocess, self._sampling = preprocess, sampling and _rule(sampling)
        self._is_all_told = is_all_told
        self._known: tuple[WeightMarks, str] | None = None  # the weights' marks and their digest
        self._loaded: tuple[str, bool] | None = None  # of a digest: whether it is of the checkpoint's tensors
        self._told: set[str] = set()

    @property
    def facts(self) -> TowerFacts:
        """The tower's facts as they are now."""
        return self._facts()

    def recipe(self, nframe: int) -> dict[str, Any]:
        """Return the recipe of what this tower computes itself."""
        facts = self.facts
        encoder = {
            "family": "live",
            "tap_point": facts.tap_point,
            "weights_sha256": self._digest_in_memory(),
            "layer": facts.layer,
            "feature": facts.feature,
            "dtype": _name(facts.dtype),
            "attention": facts.attention,
            "preprocess": None if self._preprocess is None else dict(self._preprocess),
        }
        frames = {"sampling": self._sampling or _BY_THE_CALLER, "nframe": nframe}
        return {"version": RECIPE_VERSION, "encoder": encoder, "frames": frames}

    def differences_to(self, recipe: Recipe, *, is_cast: bool) -> list[str]:
        """Return where a stored feature's recipe and this tower part, one line each; none if it fits.

        With `is_cast` another dtype is no difference. What is unknown on either side is not compared.
        """
        encoder, frames = dict(recipe.get("encoder", {})), dict(recipe.get("frames", {}))
        facts = self.facts
        wanted: dict[str, Any] = {"tap_point": facts.tap_point, "layer": facts.layer, "feature": facts.feature}
        if not is_cast:
            wanted["dtype"] = _name(facts.dtype)
        if "weights_sha256" in encoder:
            stored = encoder["weights_sha256"]
            wanted["weights_sha256"] = stored if stored in self._digests() else self._digest_in_memory()
        asked = {name: value for name, value in wanted.items() if value is not None and encoder.get(name) is not None}
        # Pixels that were kept without a word of how they are made are unlike those that are asked for.
        if "preprocess" in encoder and (self._is_all_told or self._preprocess is not None):
            asked["preprocess"] = self._preprocess
        lines = differences({"encoder": {name: encoder[name] for name in asked}}, {"encoder": asked})
        if "sampling" in frames and (self._is_all_told or self._sampling is not None):
            sampling = self._sampling or _BY_THE_CALLER
            lines += differences({"frames.sampling": frames["sampling"]}, {"frames.sampling": sampling})
        if "partial_frames" in frames:
            lines += differences({"frames.partial_frames": frames["partial_frames"]}, {})
        return lines + _differences_of_layer(encoder)

    def doubts_about(self, recipe: Recipe) -> Doubts:
        """Return what makes another recipe that fits better than this one, which does; nothing true if nothing does.

        The feature is int8, its weights are not told, its dtype is another, or its numbers may round otherwise.
        """
        encoder = recipe.get("encoder", {})
        is_cast = encoder.get("dtype") not in (None, _name(self.facts.dtype))
        has_weights = encoder.get("weights_sha256") is not None
        return int8.is_asked_for(recipe), not has_weights, is_cast, len(self._roundings(recipe))

    def _digests(self) -> Iterator[str]:
        yield self._digest_in_memory()
        if self._digest_on_disk is not None and self._is_as_loaded():
            yield self._digest_on_disk

    def _digest_in_memory(self) -> str:
        marks = self._marks()
        if self._known is None or marks != self._known[0]:
            self._known = marks, live_digest(self._weights().items(), marks.adapters)
        return self._known[1]

    def _weights(self) -> dict[str, torch.Tensor]:
        found = {_bare(name): tensor for name, tensor in self._state().items() if _counts(name)}
        if any(tensor.is_meta for tensor in found.values()):
            raise EvaluationError("weights of the tower are offloaded, and cannot be compared; load it onto one device")
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _is_as_loaded(self) -> bool:
        """Whether the tower's weights are the checkpoint's and all it has, but for the dtype that it was loaded in."""
        digest = self._digest_in_memory()
        if self._loaded is None or self._loaded[0] != digest:
            live = self._weights()
            pairs = ((live.get(_bare(name)), name, stored) for name, stored in self._on_disk())
            is_bare = not self._marks().adapters
            self._loaded = digest, is_bare and all(_is_same(*pair) for pair in pairs)
        return self._loaded[1]

    def _on_disk(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._checkpoint is not None
        files = tensor_files(self._checkpoint)
        names = [name for name in files if ("vision_tower." in name or "vision_model." in name) and _counts(name)]
        yield from read_tensors(files, names or [name for name in files if _counts(name)])

    @cached_property
    def _digest_on_disk(self) -> str | None:
        if self._checkpoint is None or not self._checkpoint.is_dir():
            return None
        try:
            return weights_digest((_bare(name), tensor) for name, tensor in self._on_disk())
        except EncoderError as exc:
            logger.warning("the weights of %s cannot be read for comparison: %s", self._checkpoint, exc)
            return None

    def tell_what_may_round_otherwise(self, recipe: Recipe) -> None:
        """Warn, once for each reason, that features of a recipe that fits may differ in their last bits."""
        for note in self._roundings(recipe):
            if note not in self._told:
                self._told.add(note)
                logger.warning("cached features may differ from live ones in their last bits: %s", note)

    def _roundings(self, recipe: Recipe) -> list[str]:
        encoder, live = recipe.get("encoder", {}), self.facts.attention
        stored, frames, by = (encoder.get(name) for name in ("attention", "frames_per_forward", "compile"))
        notes = []
        if None not in (stored, live) and stored != live:
            notes.append(f"they were computed with {stored} attention, and the live tower uses {live}")
        if frames is not None:
            notes.append(f"they were computed {frames} frames at a time")
        if by is not None:
            notes.append(f"they were computed by a tower that {by} compiled")
        return notes


def _differences_of_layer(encoder: Mapping[str, Any]) -> list[str]:
    architecture = encoder.get("architecture") or {}
    if encoder.get("family") != "huggingface" or architecture.get("model_type") in _WITHOUT_LAST_NORM:
        return []
    return ["encoder.layer: found the last hidden state, which may have passed one more norm, wanted a hidden state"]


def _is_same(live: torch.Tensor | None, name: str, stored: torch.Tensor) -> bool:
    if live is None:
        return _bare(name).startswith(_BEHIND_THE_FEATURES)
    return torch.equal(live, stored.to(live.dtype))


def _rule(sampling: str) -> str:
    """Return the name that a build records for a rule; a caller's own as it is."""
    try:
        return SamplingRule.parse(sampling).name
    except ValueError:
        return sampling


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _counts(name: str) -> bool:
    # Numbers 0..n, stored by old versions of transformers and computed by new ones.
    return not name.endswith("position_ids")


def _bare(name: str) -> str:
    """Return a tensor's name as recipes digest it: without what leads to the tower."""
    for prefix in ("vision_model.", "vision_tower."):
        if prefix in name:
            return name.rsplit(prefix, 1)[-1]
    return name
