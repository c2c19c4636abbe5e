"""Preprocessing in two halves, together bit-equal to the Hugging Face PIL processors.

Decoder processes resize and crop uint8 frames with Pillow (`resizing`), as was held against the processor's own code
when the preprocess was made; the device looks the rescaled and normalised values up in a table (`pixel_table`) which
that same processor computed for the ramp 0..255. Both steps are exact on every device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.errors import EncoderError
from pipeline.vision.resizing import ResizeAndCrop, Size, SmartResize, require_equal

if TYPE_CHECKING:
    import torch

    from pipeline.vision.pixel_table import PixelTable

# Their steps are PilBackend's own: resize, centre crop, rescale, normalise, and nothing else.
CLIP_LIKE_PROCESSORS = (
    "BitImageProcessor",
    "CLIPImageProcessor",
    "DeiTImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)

RECIPE_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
)


@dataclass(frozen=True)
class _HeldProcessor:
    """A processor's class and settings as text: cheap to pickle and to compare; the processor is built where used."""

    processor: str  # class name without "Pil" or "Fast"
    settings: str  # JSON of the constructor's arguments

    @property
    def built(self) -> Any:
        """The PIL processor, one per process."""
        return _build(self.processor, self.settings)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that change the numbers, defaults written out.

        They travel along once they are known, so that who only asks for them need not import the processor.
        """
        return dict(self._recipe)

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        found = {name: getattr(self.built, name, None) for name in RECIPE_SETTINGS}
        return {"processor": f"{self.processor}Pil"} | {
            name: _plain(value) for name, value in found.items() if value is not None
        }

    def table(self) -> PixelTable:
        """Return the device half of rescaling and normalising."""
        from pipeline.vision.pixel_table import PixelTable

        return PixelTable.of(self.built)


@dataclass(frozen=True)
class ClipLikePreprocess(_HeldProcessor):
    """The CPU half for video encoders: every frame becomes `height` x `width`, whatever its own size."""

    height: int
    width: int
    resize: ResizeAndCrop

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ClipLikePreprocess:
        """Make one from the content of a `preprocessor_config.json`.

        Raises:
            EncoderError: the processor does more than resize, crop, rescale and normalise, or gives no fixed
                size, or resizes in a way of its own.
        """
        name = _processor_name(config)
        if name not in CLIP_LIKE_PROCESSORS:
            raise EncoderError(
                f"image processor {name!r} is not supported for video encoders; supported: "
                f"{', '.join(CLIP_LIKE_PROCESSORS)}"
            )
        settings = _settings(config)
        built = _build(name, settings)
        if not _uses_standard_steps(built):
            raise EncoderError(
                f"image processor {name!r} has steps of its own; only resize, crop, rescale, normalise work"
            )
        if getattr(built, "do_pad", None):
            raise EncoderError(f"image processor {name!r} pads; only resize, crop, rescale and normalise work")
        resize = _resize_and_crop(name, built)
        require_equal(resize, lambda frame: _as_it_does(built, frame))
        return cls(name, settings, *_fixed_size(name, resize), resize)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Resize and crop one frame: uint8 [h, w, 3] RGB to uint8 [height, width, 3], as the PIL processor does.

        Raises:
            ValueError: the array is no such frame, or so narrow that the resized edge would not fit in
                memory.
        """
        _check_frame(frame)
        return self.resize(frame)


@dataclass(frozen=True)
class QwenImagePreprocess(_HeldProcessor):
    """The CPU half for Qwen2.5-VL: each image keeps its aspect ratio; both edges become multiples of 28 pixels."""

    resize: SmartResize

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> QwenImagePreprocess:
        """Make one from the content of a `preprocessor_config.json`; the bounds, if given, replace the checkpoint's.

        Raises:
            EncoderError: it describes another processor, or one that resizes in a way of its own, or the bounds
                cannot be met.
        """
        name = _processor_name(config)
        if name not in ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor"):
            raise EncoderError(f"image processor {name!r} is not Qwen2-VL's")
        overrides = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = {key: value for key, value in overrides.items() if value is not None}
        settings = _settings(config, given)
        built = _build("Qwen2VLImageProcessor", settings)
        size, factor = built.size, built.patch_size * built.merge_size
        if not built.do_resize or not size.shortest_edge or not size.longest_edge:
            raise EncoderError(
                "Qwen2-VL's image processor has to resize, between a smallest and a largest area in pixels"
            )
        if not 0 < size.shortest_edge <= size.longest_edge:
            raise EncoderError(f"min_pixels {size.shortest_edge} and max_pixels {size.longest_edge} cannot both hold")
        resize = SmartResize(_filter_of(built), factor, size.shortest_edge, size.longest_edge)

        def as_it_does(image: np.ndarray) -> np.ndarray:
            resized = built.resize(np.moveaxis(image, -1, 0), size=size, resample=built.resample, factor=factor)
            return np.moveaxis(resized, 0, -1)

        require_equal(resize, as_it_does)
        return cls("Qwen2VLImageProcessor", settings, resize)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize one image: uint8 [h, w, 3] RGB to uint8 [h', w', 3], as the PIL processor does.

        Raises:
            ValueError: the array is no such image, or one edge is over 200 times the other.
        """
        _check_frame(image)
        return self.resize(image)

    def patchify(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut one normalised image into the model's patches, on its device.

        Args:
            pixels: [3, h, w], both edges multiples of patch_size * merge_size.

        Returns:
            Patches [h/p * w/p, 3 * temporal_patch_size * p * p] with p the patch size, rows in groups of
            merge_size x merge_size neighbours, and the grid, int64 [1, 3]: 1, h/p, w/p.
        """
        frames = pixels.expand(self.built.temporal_patch_size, *pixels.shape)
        return self.patchify_video(frames)

    def patchify_video(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the normalised frames of a video into the model's patches, on their device.

        Args:
            pixels: [frames, 3, h, w], whole groups of temporal_patch_size frames, edges as in `patchify`.

        Returns:
            Patches [g * h/p * w/p, 3 * temporal_patch_size * p * p] and the grid, int64 [1, 3]: g, h/p, w/p, with g
            groups of frames; rows within each group as in `patchify`.
        """
        import torch

        built = self.built
        patch, merge, frames = built.patch_size, built.merge_size, built.temporal_patch_size
        count, channels, height, width = pixels.shape
        groups, rows, columns = count // frames, height // patch, width // patch
        blocks = pixels.reshape(
            groups, frames, channels, rows // merge, merge, patch, columns // merge, merge, patch
        ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        patches = blocks.reshape(groups * rows * columns, channels * frames * patch * patch)
        return patches, torch.tensor([[groups, rows, columns]], device=pixels.device)


def _check_frame(frame: np.ndarray) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"expected a frame uint8 [h, w, 3], got {frame.dtype} {list(frame.shape)}")


def _processor_name(config: dict[str, Any]) -> str:
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "none named")
    for suffix in ("Fast", "Pil"):
        name = name.removesuffix(suffix)
    return name.replace("FeatureExtractor", "ImageProcessor")


def _settings(config: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    dropped = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
    kept = {key: value for key, value in config.items() if key not in dropped}
    return json.dumps(kept | (overrides or {}), sort_keys=True)


@lru_cache(maxsize=16)
def _build(processor: str, settings: str) -> Any:
    import transformers

    kind = getattr(transformers, f"{processor}Pil", None)
    if kind is None:
        raise EncoderError(f"this transformers has no PIL variant of the image processor {processor!r}")
    try:
        return kind(**json.loads(settings))
    except (TypeError, ValueError) as exc:
        raise EncoderError(f"image processor {processor!r} cannot be built from its configuration: {exc}") from exc


def _uses_standard_steps(built: Any) -> bool:
    from transformers.image_processing_backends import PilBackend

    steps = ("_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize", "preprocess")
    own = [step for step in steps if step in vars(type(built))]
    # CLIP's and its kin's `preprocess`, where defined, only carries documentation.
    return isinstance(built, PilBackend) and set(own) <= {"preprocess"}


def _as_it_does(built: Any, frame: np.ndarray) -> np.ndarray:
    """Let the processor itself resize and crop."""
    out = built(images=[frame], do_rescale=False, do_normalize=False, input_data_format="channels_last")
    return np.moveaxis(out["pixel_values"][0], 0, -1)


def _resize_and_crop(name: str, built: Any) -> ResizeAndCrop:
    """Return what the processor does to a frame's size.

    Raises:
        EncoderError: its size is none of shortest edge, or height and width.
    """
    size = built.size if built.do_resize else None
    crop = _height_and_width(built.crop_size) if built.do_center_crop else None
    edge = size.shortest_edge if size is not None and not size.longest_edge else None
    fixed = None if size is None or edge else _height_and_width(size)
    if size is not None and not edge and fixed is None:
        raise EncoderError(
            f"image processor {name!r} resizes to {_plain(size)}: only a shortest edge, or height and width work"
        )
    return ResizeAndCrop(_filter_of(built), edge, fixed, crop)


def _filter_of(built: Any) -> int:
    return int(Image.Resampling.BILINEAR if built.resample is None else built.resample)


def _height_and_width(size: Any) -> Size | None:
    return (int(size.height), int(size.width)) if size is not None and size.height and size.width else None


def _fixed_size(name: str, resize: ResizeAndCrop) -> Size:
    """Return height and width of every output.

    Raises:
        EncoderError: the output's size follows the input's.
    """
    size = resize.crop or resize.size
    if size is None:
        raise EncoderError(
            f"image processor {name!r} gives images of varying size; a video needs one (a centre crop, or a resize to "
            "height and width)"
        )
    return size


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {str(key): _plain(item) for key, item in dict(value).items() if item is not None}
