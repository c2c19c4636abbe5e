"""Whether a stored feature is what a live tower would compute: its recipe held against what is known of the tower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cache_store.recipes import differences
from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.live_tower import TowerFacts
from pipeline.encoders.checkpoint import read_tensors, tensor_files, weights_digest
from pipeline.encoders.live_weights import WeightMarks, live_digest
from pipeline.errors import EncoderError
from pipeline.recipe import RECIPE_VERSION

Recipe = Mapping[str, Any]

logger = logging.getLogger("consumers.evaluation")


class TowerIdentity:
    """What tells one tower from another: facts, and the digest of its weights, which is computed when first asked for
    and again when they have changed.

    `state` gives the weights by name, `marks` what shows whether they changed, `facts` those of now. `checkpoint` is
    the folder from which the model was loaded: a recipe has the digest of the tensors as they were on disk, so a model
    that was loaded in another dtype can only be told by that folder, as long as it holds the folder's weights.
    `preprocess` and `sampling` are compared where they are given.
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
    ) -> None:
        self._facts, self._state, self._marks, self._checkpoint = facts, state, marks, checkpoint
        self._preprocess, self._sampling = preprocess, sampling
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
        frames = {"sampling": self._sampling or "the caller's", "nframe": nframe}
        return {"version": RECIPE_VERSION, "encoder": encoder, "frames": frames}

    def differences_to(self, recipe: Recipe, *, is_cast: bool) -> list[str]:
        """Return where a stored feature's recipe and this tower part, one line each; none if it fits.

        With `is_cast` another dtype is no difference. What is unknown on either side is not compared.
        """
        encoder, frames = dict(recipe.get("encoder", {})), dict(recipe.get("frames", {}))
        facts = self.facts
        wanted: dict[str, Any] = {"tap_point": facts.tap_point, "layer": facts.layer, "feature": facts.feature}
        wanted["preprocess"] = self._preprocess
        if not is_cast:
            wanted["dtype"] = _name(facts.dtype)
        if "weights_sha256" in encoder:
            stored = encoder["weights_sha256"]
            wanted["weights_sha256"] = stored if stored in self._digests() else self._digest_in_memory()
        known = {name: value for name, value in wanted.items() if value is not None}
        found = {"encoder": {name: encoder[name] for name in known if encoder.get(name) is not None}}
        asked = {"encoder": {name: known[name] for name in found["encoder"]}}
        lines = differences(found, asked)
        if self._sampling is not None and "sampling" in frames:
            lines += differences({"frames.sampling": frames["sampling"]}, {"frames.sampling": self._sampling})
        if not lines:
            self._tell_what_may_round_otherwise(encoder)
        return lines

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
            pairs = ((live[_bare(name)], stored) for name, stored in self._on_disk() if _bare(name) in live)
            is_bare = not self._marks().adapters
            self._loaded = digest, is_bare and all(torch.equal(one, other.to(one.dtype)) for one, other in pairs)
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

    def _tell_what_may_round_otherwise(self, encoder: Mapping[str, Any]) -> None:
        stored, live = encoder.get("attention"), self.facts.attention
        notes = []
        if None not in (stored, live) and stored != live:
            notes.append(f"they were computed with {stored} attention, and the live tower uses {live}")
        if encoder.get("frames_per_forward") is not None:
            notes.append(f"they were computed {encoder['frames_per_forward']} frames at a time")
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                logger.warning("cached features may differ from live ones in their last bits: %s", note)


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
