"""The weights of a live module: what shows that they have changed without reading them, and their digest."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline.encoders.checkpoint import weights_digest

_ADAPTER_STATE = ("active_adapter", "disable_adapters", "merged_adapters", "scaling")


class WeightMarks:
    """Equal to other marks if since then no tensor was written to, replaced or moved, and no adapter switched.

    What is written through a parameter's `.data`, or by an optimizer with `fused=True`, torch does not count. It counts
    no write at all to tensors made under `torch.inference_mode`: marks of such are equal to none (`counts_writes`), and
    of offloaded ones, which have no memory, nothing is seen. Marks keep no tensor alive, and cannot be pickled.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensors: Iterable[torch.Tensor], adapters: Iterable[str] = ()) -> None:
        held = list(tensors)
        self.counts_writes = not any(tensor.is_inference() for tensor in held)
        self.adapters = list(adapters)
        self._values = [(tensor.data_ptr(), tensor._version) for tensor in held] if self.counts_writes else []
        # An address alone would not do: the allocator gives that of what was freed to what comes next. Offloaded
        # weights are others after each forward.
        here = [tensor for tensor in held if not tensor.is_meta]
        self._tensors: list[weakref.ref[Any]] = [weakref.ref(tensor) for tensor in here]
        # torch's own: in its old versions the Python object of a storage lives for a moment only, and leaves Python's
        # weak references pointing to freed memory.
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in here]  # type: ignore[no-untyped-call]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightMarks)
            and self.counts_writes
            and (self._values, self.adapters) == (other._values, other.adapters)
            and len(self._tensors) == len(other._tensors)
            and all(map(is_, self._tensors, other._tensors))  # one object has one reference while it is held
            and self._storages == other._storages
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightMarks:
        return self  # never changed, and a copied reference to a storage would be given back twice


def module_marks(module: torch.nn.Module) -> WeightMarks:
    """Return the marks of a module's parameters and buffers, and of its adapters."""
    return WeightMarks((*module.parameters(), *module.buffers()), adapter_states(module.modules()))


def adapter_states(modules: Iterable[torch.nn.Module]) -> list[str]:
    """Return what each adapted layer (PEFT's) among modules computes beside what its tensors tell, in their order.

    Which adapters are active, disabled or merged, and their scaling.
    """
    layers = list(modules)
    # On whole models of transformers it is a method. Looked for by kind, since a look at each layer takes longer.
    adapted = {kind for kind in set(map(type, layers)) if isinstance(getattr(kind, "disable_adapters", None), property)}
    return [repr([getattr(one, name, None) for name in _ADAPTER_STATE]) for one in layers if type(one) in adapted]


def live_digest(tensors: Iterable[tuple[str, torch.Tensor]], adapters: Iterable[str]) -> str:
    """Return the digest of weights in memory: `weights_digest`, and where there are adapters of their states too."""
    digest, states = weights_digest(tensors), list(adapters)
    return hashlib.sha256(json.dumps([digest, *states]).encode()).hexdigest() if states else digest
