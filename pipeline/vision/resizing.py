"""How the Hugging Face PIL processors resize and crop a frame, with Pillow and numpy alone.

Decoder processes run this. The processors' own code would bring torch and transformers into each of them: five seconds
of CPU time at its start, and hundreds of megabytes. So whoever makes a preprocess holds one against the other first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.errors import EncoderError

Size = tuple[int, int]  # height and width in pixels
_MOST_ASPECT = 200
# Upright, lying, odd, tiny, and one that no crop fits into.
_TRIED: tuple[Size, ...] = ((97, 64), (120, 213), (33, 35), (2, 3), (1, 9))


@dataclass(frozen=True)
class ResizeAndCrop:
    """The steps of CLIP's processor and its kin: resize, then a centre crop; either may be missing."""

    resample: int  # of `PIL.Image.Resampling`
    shortest_edge: int | None  # both edges are scaled so that the shorter one has this length
    size: Size | None  # or to this size, whatever the aspect ratio
    crop: Size | None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return uint8 [h, w, 3] resized and cropped, contiguous."""
        size = self._resized_to(*frame.shape[:2])
        if size is not None:
            frame = _resized(frame, size, self.resample)
        return np.ascontiguousarray(frame) if self.crop is None else _center_cropped(frame, self.crop)

    def _resized_to(self, height: int, width: int) -> Size | None:
        if self.shortest_edge is None:
            return self.size
        longest_edge = int(self.shortest_edge * max(height, width) / min(height, width))
        return (longest_edge, self.shortest_edge) if width <= height else (self.shortest_edge, longest_edge)


@dataclass(frozen=True)
class SmartResize:
    """Qwen2-VL's resize: the aspect ratio is kept as well as edges that are multiples of `factor` pixels allow."""

    resample: int  # of `PIL.Image.Resampling`
    factor: int
    min_pixels: int
    max_pixels: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return uint8 [h, w, 3] resized, contiguous.

        Raises:
            ValueError: one edge is over 200 times the other.
        """
        return _resized(image, self.resized_to(*image.shape[:2]), self.resample)

    def resized_to(self, height: int, width: int) -> Size:
        """Return the size that `smart_resize` of Qwen2-VL's processor gives an image."""
        if max(height, width) / min(height, width) > _MOST_ASPECT:
            raise ValueError(f"an image of {width}x{height} pixels: one edge is over {_MOST_ASPECT} times the other")
        factor = self.factor
        rounded = round(height / factor) * factor, round(width / factor) * factor
        if math.prod(rounded) > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return _floor(height / shrink, factor), _floor(width / shrink, factor)
        if math.prod(rounded) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
        return rounded


def require_equal(own: Callable[[np.ndarray], np.ndarray], processors: Callable[[np.ndarray], np.ndarray]) -> None:
    """Hold a resize against the processor's own on frames of noise of several shapes.

    Raises:
        EncoderError: they differ in a bit, or the processor refuses what it was configured to do.
    """
    noise = np.random.default_rng(0)
    for height, width in _TRIED:
        frame = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        try:
            is_equal = np.array_equal(own(frame), processors(frame))
        except (ValueError, TypeError, AttributeError) as exc:
            raise EncoderError(f"the image processor's configuration does not work: {exc}") from exc
        if not is_equal:
            raise EncoderError(
                f"the installed transformers resizes a frame of {width}x{height} pixels to other values than vlm-cache "
                "does; this version of it is not supported"
            )


def _resized(frame: np.ndarray, size: Size, resample: int) -> np.ndarray:
    height, width = size
    return np.array(Image.fromarray(frame).resize((width, height), resample))


def _floor(edge: float, factor: int) -> int:
    return max(factor, math.floor(edge / factor) * factor)


def _center_cropped(frame: np.ndarray, size: Size) -> np.ndarray:
    """Cut `size` out of the middle; what is smaller is padded with zeros, the odd one of them above or left."""
    (kept_rows, rows), (kept_columns, columns) = map(_middle, frame.shape[:2], size)
    cropped = np.zeros((*size, 3), dtype=np.uint8)
    cropped[rows, columns] = frame[kept_rows, kept_columns]
    return cropped


def _middle(length: int, wanted: int) -> tuple[slice, slice]:
    """Return which part of an edge is kept, and where it lies in the `wanted` pixels."""
    if length >= wanted:
        start = (length - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    start = math.ceil((wanted - length) / 2)
    return slice(0, length), slice(start, start + length)
