"""The KV cache of one stream: snapshots and branches that copy nothing, and a position counter of its own."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from consumers.streaming.errors import NoSnapshot, UnsupportedCache


@dataclass(frozen=True, eq=False)
class _Snapshot:
    cache: Any
    next_position: int
    tokens_seen: int
    rope_deltas: torch.Tensor | None


class KVCacheManager:
    """Holds the keys and values of one token sequence, and the position where its next text token goes.

    A cache is a transformers `DynamicCache`: appending replaces a layer's tensors by longer ones and never writes into
    the old ones. So a snapshot or a branch is a second list of references to the same tensors: it costs microseconds at
    any length, and stays valid whatever is appended to either side. Caches of other kinds are refused.

    `next_position` and `tokens_seen` count what was ever appended; neither follows from the cache's length once tokens
    were evicted. Not thread-safe; the engines lock around it. What an engine counts beside its manager (chunks, frames,
    what eviction drops next) no `restore` takes back: `reset` the engine instead.
    """

    def __init__(self, cache: Any = None) -> None:
        if cache is not None:
            _check_kind(cache)
        self.cache = cache
        self.next_position = 0
        self.tokens_seen = 0
        self._snapshot: _Snapshot | None = None

    def get_seq_length(self) -> int:
        """Return how many tokens the cache holds now."""
        return 0 if self.cache is None else int(self.cache.get_seq_length())

    @property
    def nbytes(self) -> int:
        """The exact bytes of all keys and values, by dtype and shape.

        Raises:
            UnsupportedCache: the cache's layers hold no plain keys and values.
        """
        return sum(keys.nbytes + values.nbytes for keys, values in self.tensors())

    def tensors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's keys and values, [batch, heads, tokens, width]; an empty list for an empty cache."""
        if self.cache is None:
            return []
        _check_kind(self.cache)
        return [(layer.keys, layer.values) for layer in self.cache.layers if layer.get_seq_length()]

    def detach(self, past_key_values: Any) -> Any:
        """Return a cache of the same tensors without their autograd graph. Copies nothing."""
        detached = self.clone(past_key_values)
        for layer in detached.layers:
            if layer.get_seq_length():
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return detached

    def clone(self, cache: Any) -> Any:
        """Return a cache of the same tensors; what is appended to one is not in the other. Copies nothing.

        Raises:
            UnsupportedCache: the cache is None, or not made of layers that only grow.
        """
        _check_kind(cache)
        twin = copy.copy(cache)
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        return twin

    def branch(self) -> KVCacheManager:
        """Return a manager that goes on from here on its own."""
        twin = KVCacheManager(None if self.cache is None else self.clone(self.cache))
        twin.next_position, twin.tokens_seen = self.next_position, self.tokens_seen
        return twin

    def snapshot(self, model: Any = None) -> None:
        """Remember the present state, and `rope_deltas` of `model` if one is given. Replaces an earlier snapshot."""
        cache = None if self.cache is None else self.clone(self.cache)
        self._snapshot = _Snapshot(cache, self.next_position, self.tokens_seen, _inner(model, "rope_deltas"))

    def restore(self, model: Any = None) -> None:
        """Go back to the snapshot, which stays; `model` gets back the `rope_deltas` that it had.

        Raises:
            NoSnapshot: none was taken, or it was discarded.
        """
        saved = self._snapshot
        if saved is None:
            raise NoSnapshot("nothing to restore: take a snapshot() first")
        self.cache = None if saved.cache is None else self.clone(saved.cache)
        self.next_position, self.tokens_seen = saved.next_position, saved.tokens_seen
        if model is not None:
            getattr(model, "model", model).rope_deltas = saved.rope_deltas

    def discard_snapshot(self) -> None:
        """Forget the snapshot, so that its tensors can be freed. Without one: does nothing."""
        self._snapshot = None

    def build_full_attention_mask(self, new_mask: torch.Tensor, cache_override: Any = None) -> torch.Tensor:
        """Return the mask over cached and new tokens: ones [batch, cached], then `new_mask` [batch, new].

        `cache_override` is counted instead of this manager's cache.

        Raises:
            ValueError: the mask is not [batch, new], or its batch is not the cache's.
        """
        cache = self.cache if cache_override is None else cache_override
        length = 0 if cache is None else int(cache.get_seq_length())
        if new_mask.dim() != 2:
            raise ValueError(f"new_mask is {list(new_mask.shape)}, expected [batch, new tokens]")
        if length and cache.layers[0].keys.shape[0] != new_mask.shape[0]:
            raise ValueError(
                f"new_mask has a batch of {new_mask.shape[0]}, the cache of {cache.layers[0].keys.shape[0]}"
            )
        return torch.cat([new_mask.new_ones(new_mask.shape[0], length), new_mask], dim=1)

    def keep_tokens(self, spans: list[tuple[int, int]]) -> None:
        """Keep the tokens of these ascending [start, end) spans and free the others; positions stay as they are.

        On any error all tokens are kept: those of every layer are copied before any is freed. For the moment that takes
        as much memory again as what is kept, as a question's branch does.
        """
        kept = self.clone(self.cache)
        for layer in kept.layers:
            layer.keys = torch.cat([layer.keys[:, :, start:end] for start, end in spans], dim=2)
            layer.values = torch.cat([layer.values[:, :, start:end] for start, end in spans], dim=2)
        self.cache = kept

    def cut_back(self, length: int) -> None:
        """Undo an append that failed half-way: drop what any layer holds beyond `length` tokens.

        Their memory is freed too, unless there is none for a copy of a layer: then the next append frees it.
        """
        if self.cache is not None and length == 0:
            self.cache = None
        elif self.cache is not None:
            longer = [layer for layer in self.cache.layers if max(layer.keys.shape[2], layer.values.shape[2]) > length]
            for layer in longer:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
            with suppress(RuntimeError, MemoryError):
                for layer in longer:
                    layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    def clear(self) -> None:
        """Drop the cache, the snapshot and the counters."""
        self.cache = self._snapshot = None
        self.next_position = self.tokens_seen = 0


def _inner(model: Any, name: str) -> Any:
    """Return an attribute of the inner model of a `...ForConditionalGeneration`, or of the inner model itself."""
    return None if model is None else getattr(getattr(model, "model", model), name, None)


def check_holds(cache: Any, tokens: int) -> None:
    """Check that a model has put all of `tokens` into the cache that it was given.

    Raises:
        UnsupportedCache: it has not, so that what comes next would not see them.
    """
    held = int(cache.get_seq_length())
    if held < tokens:
        raise UnsupportedCache(
            f"the model has put {held} of {tokens} tokens into the KV cache; in training mode with activation "
            "checkpointing it keeps none: call model.eval()"
        )


def _check_kind(cache: Any) -> None:
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    if layers is None or any(type(layer) is not DynamicLayer for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers or ()}) or [type(cache).__name__]
        raise UnsupportedCache(f"a stream needs a DynamicCache of DynamicLayers, got {', '.join(kinds)}")
