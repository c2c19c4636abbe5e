"""Features kept as int8: each token divided by a scale of its own, the loss measured, and the way back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_store.archive import open_archive
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.file_systems import READ_FLAGS
from cache_store.pickle_layout import MAIN_FIELD, float_behind

if TYPE_CHECKING:
    import torch

# What a recipe says of features that are not kept as the tower gave them. Nothing else is known under this name.
RECIPE_FIELD = "storage"
STORAGE: Mapping[str, str] = {"dtype": "int8", "scale": "token"}

SCALE_FIELD = "vision_features_scale"
LOSS_FIELD = "quantisation"
DTYPES = ("float16", "bfloat16", "float32")  # that can be kept so, and be given back
_SCHEME = "int8, one scale for each token"
_MOST = 127  # -128 is left out, so that the range is symmetric
_SCALE_BYTES = 4
_HEAD_BYTES = 1 << 12  # holds what a file says of itself in front of its tensors, unless its path is very long
# Torch gives more to several threads, which beside a busy encoder wait for each other a hundred times as long as this.
_PIECE_VALUES = 1 << 15
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A larger scale times 127 would be infinite.
_LARGEST_SCALE = np.nextafter(np.float32(_FLOAT32_MAX / _MOST), np.float32(0))


class Loss(NamedTuple):
    """What int8 cost one feature, in float64, between what was put and what is read in the same dtype.

    Cosines are those of single tokens, a token of zeros counts 1; `max_error` is in the feature's own unit;
    `relative_error` is the norm of the whole difference by the norm of the feature, 0 for a feature of zeros.
    """

    worst_cosine: float
    mean_cosine: float
    max_error: float
    relative_error: float


def is_asked_for(recipe: Mapping[str, Any] | None) -> bool:
    """Whether a recipe asks for int8; without a word about storage it asks for the tower's own values.

    Raises:
        ValueError: it asks for a storage that there is not.
    """
    storage = None if recipe is None else recipe.get(RECIPE_FIELD)
    if storage is None:
        return False
    if storage != STORAGE:
        raise ValueError(f"the recipe's {RECIPE_FIELD} is {storage!r}; give {dict(STORAGE)!r}, or leave it out")
    return True


def mark_of(value: object) -> Mapping[str, Any] | None:
    """What a feature, or the layout of one, tells of its quantisation: dtype and loss; None for an exact one."""
    mark = value.get(LOSS_FIELD) if isinstance(value, dict) else None
    return mark if isinstance(mark, dict) and mark.get("scheme") == _SCHEME else None


def loss_of(value: object) -> Loss | None:
    """The loss that was measured when a feature was put; None for an exact one, or where it cannot be read."""
    mark = mark_of(value)
    figures = [(mark or {}).get(name) for name in Loss._fields]
    floats = [figure for figure in figures if isinstance(figure, float)]
    return Loss(*floats) if len(floats) == len(figures) else None


def loss_in(path: str) -> Loss | None:
    """As `loss_of` for a file, from its head alone where that tells. For listings: damage is not noticed."""
    try:
        fd = os.open(path, READ_FLAGS)
        try:
            head = os.pread(fd, _HEAD_BYTES, 0)
        finally:
            os.close(fd)
        told = [figure for name in Loss._fields if (figure := float_behind(head, name)) is not None]
        if len(told) == len(Loss._fields):
            return Loss(*told)
        with open_archive(path) as archive:
            return loss_of(archive.tree())
    except (OSError, DamagedFeature, StoreReadError):
        # Evicted this moment, or a problem that `verify` names.
        return None


def payload_bytes(shape: Sequence[int]) -> int:
    """The bytes of a feature's values and scales, for one of this shape."""
    tokens = math.prod(shape[:-1])
    return tokens * (shape[-1] + _SCALE_BYTES)


def for_storage(value: object, recipe: Mapping[str, Any] | None) -> object:
    """The value as its recipe wants it kept: as it is, or as int8 with its scales and its loss.

    What was made int8 before stays as it is.

    Raises:
        TypeError: there is nothing in it that can be kept as int8.
        ValueError: it holds NaN or infinity; or the recipe promises exact values, and these are none.
    """
    is_wanted = is_asked_for(recipe)
    if mark_of(value) is not None:
        if recipe is not None and not is_wanted:
            raise ValueError("the feature went through int8, and its recipe says nothing of it; put the exact one")
        if is_wanted and not is_quantised(value):
            raise ValueError("the feature was read from int8; to make it int8 again would lose twice")
        if is_quantised(value) and not has_scales(value):
            raise ValueError(f"the feature is marked as int8, and {SCALE_FIELD} does not fit its values")
        return value
    return _quantised(value) if is_wanted else value


def is_quantised(value: object) -> bool:
    """Whether a feature, or the layout of one, is marked and has its values as int8."""
    if not isinstance(value, dict) or mark_of(value) is None:
        return False
    return str(getattr(value.get(MAIN_FIELD), "dtype", "")).removeprefix("torch.") == "int8"


def has_scales(value: object) -> bool:
    """Whether a feature that `is_quantised`, or its layout, has one float32 scale for each token."""
    values, scales = (value.get(name) if isinstance(value, dict) else None for name in (MAIN_FIELD, SCALE_FIELD))
    shape = tuple(getattr(values, "shape", ()))
    is_float32 = str(getattr(scales, "dtype", "")).removeprefix("torch.") == "float32"
    return is_float32 and len(shape) >= 2 and tuple(getattr(scales, "shape", ())) == (*shape[:-1], 1)


def _quantised(value: object) -> dict[Any, Any]:
    """A copy with int8 values, their scales (float32, `[..., 1]`), `dtype` "int8" and the loss.

    A token's scale is the least float32 that is at least its largest magnitude by 127, so that no value lies more than
    half a scale, but for rounding, from what is kept; its product with 127 stays finite.
    """
    import torch

    features = value.get(MAIN_FIELD) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(features, torch.Tensor):
        raise TypeError(f"only a dict with a tensor {MAIN_FIELD!r} can be kept as int8; keep this one exact")
    dtype = str(features.dtype).removeprefix("torch.")
    if dtype not in DTYPES or features.ndim < 2:
        raise TypeError(
            f"{MAIN_FIELD} is {dtype} {list(features.shape)}; int8 takes float16, bfloat16 or float32 in "
            "[frames, tokens, width]"
        )
    exact = features.detach().cpu().contiguous()
    tokens = exact.reshape(math.prod(exact.shape[:-1]), exact.shape[-1])
    values = torch.empty(tokens.shape, dtype=torch.int8)
    scales = torch.empty((len(tokens), 1), dtype=torch.float32)
    measured = _Measured()
    at_once = max(1, _PIECE_VALUES // max(1, tokens.shape[1]))
    for start in range(0, len(tokens), at_once):
        part = slice(start, start + at_once)
        given = _quantise(tokens[part], values[part], scales[part])
        measured.add(tokens[part], given)
    return {
        **value,
        MAIN_FIELD: values.view(exact.shape),
        "dtype": "int8",
        SCALE_FIELD: scales.view(*exact.shape[:-1], 1),
        LOSS_FIELD: {"scheme": _SCHEME, "dtype": dtype, **measured.loss()._asdict()},
    }


def _quantise(exact: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Fill values [tokens, width] and scales [tokens, 1]; returns what a reader will get for them."""
    import torch

    numbers = exact.to(torch.float32).numpy()
    work = np.abs(numbers)
    largest = work.max(axis=1, initial=0.0, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError(f"{MAIN_FIELD} holds NaN or infinity, which int8 cannot keep; keep this one exact")
    wanted = largest.astype(np.float64) / _MOST
    scale = wanted.astype(np.float32)
    # Not to the nearest: in the last digits above zero that could be half of what is wanted, or nothing.
    scale = np.where(scale < wanted, np.nextafter(scale, np.float32(np.inf)), scale)
    scale = np.minimum(scale, _LARGEST_SCALE)
    np.divide(numbers, np.where(scale > 0, scale, np.float32(1)), out=work)
    np.rint(work, out=work)
    values.copy_(torch.from_numpy(work))
    scales.copy_(torch.from_numpy(scale))
    given = torch.empty_like(exact)
    dequantise(values, scales, given)
    return given


def dequantise(values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` with int8 values times their float32 scales, each product rounded to float32 and then to its dtype.

    Values and a contiguous `out` are [..., width], scales [..., 1].
    """
    import torch

    width = out.shape[-1]
    if out.numel():
        tokens, factors, given = values.reshape(-1, width), scales.reshape(-1, 1), out.view(-1, width)
        at_once = max(1, _PIECE_VALUES // width)
        for start in range(0, len(tokens), at_once):
            part = slice(start, start + at_once)
            torch.mul(tokens[part], factors[part], out=given[part])


class _Measured:
    """Adds up the loss of one feature, piece by piece."""

    def __init__(self) -> None:
        self._tokens = 0
        self._worst_cosine, self._cosines = 1.0, 0.0
        self._max_error = self._squares = self._squared_errors = 0.0

    def add(self, exact: torch.Tensor, given: torch.Tensor) -> None:
        """Compare some tokens, [tokens, width] each."""
        import torch

        one, other = (part.to(torch.float32).numpy().astype(np.float64) for part in (exact, given))
        # Not BLAS, whose order of adding depends on its threads.
        squares, others, products = (
            np.einsum("tw,tw->t", left, right) for left, right in ((one, one), (other, other), (one, other))
        )
        norms = np.sqrt(squares) * np.sqrt(others)
        cosines = np.where(squares == 0, 1.0, products / np.where(norms > 0, norms, 1.0))
        np.subtract(one, other, out=other)
        self._squared_errors += float(np.einsum("tw,tw->", other, other))
        self._squares += float(squares.sum())
        self._max_error = max(self._max_error, float(other.max(initial=0.0)), -float(other.min(initial=0.0)))
        self._worst_cosine = min(self._worst_cosine, float(cosines.min(initial=1.0)))
        self._cosines += float(cosines.sum())
        self._tokens += len(cosines)

    def loss(self) -> Loss:
        """The figures; sums to nine digits, because their last ones depend on the processor, and files would too."""
        mean = min(1.0, self._cosines / self._tokens) if self._tokens else 1.0
        relative = math.sqrt(self._squared_errors / self._squares) if self._squares else 0.0
        worst, mean, relative = (float(f"{figure:.9g}") for figure in (self._worst_cosine, mean, relative))
        return Loss(worst, mean, self._max_error, relative)
