"""The one table of encoder families."""

from __future__ import annotations

from pipeline.encoders.base import EncoderSpec
from pipeline.errors import EncoderError

FAMILIES = ("longva", "qwen2_5_vl", "huggingface")


def load_spec(
    family: str,
    model: str,
    *,
    dtype: str | None = None,
    select_layer: int | None = None,
    frames_per_forward: int | None = None,
    is_compiled: bool | None = None,
    revision: str | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    micro_batch: int | None = None,
) -> EncoderSpec:
    """Check what was asked for against the checkpoint, without loading weights.

    Args:
        family: one of `FAMILIES`.
        model: `small` (built in), a checkpoint folder, or a hub id.
        dtype: float16, bfloat16 or float32; by default LongVA's float16, elsewhere the checkpoint's own.
        select_layer: the hidden state that is stored, of longva alone; by default the checkpoint's, else -2.
        frames_per_forward: split a video's forward, of longva and huggingface; by default it is not split.
        is_compiled: whether torch compiles the tower, of longva and huggingface; by default it runs eagerly.
        revision: of a hub id.
        max_pixels, min_pixels: bounds of an image's area after resizing, of qwen2_5_vl alone; by default the
            checkpoint's.
        micro_batch: steps in one forward, of qwen2_5_vl alone; by default each has its own.

    Raises:
        EncoderError: unknown family, no such model, not what the family needs, or an option that it does not
            have.
    """
    if family not in FAMILIES:
        raise EncoderError(f"unknown encoder family {family!r}; known: {', '.join(FAMILIES)}")
    options = {
        "select_layer": select_layer,
        "frames_per_forward": frames_per_forward,
        "is_compiled": is_compiled,
        "max_pixels": max_pixels,
        "min_pixels": min_pixels,
        "micro_batch": micro_batch,
    }
    if family == "longva":
        _refuse(family, options, "max_pixels", "min_pixels", "micro_batch")
        from pipeline.encoders.longva import longva_spec

        return longva_spec(
            model,
            dtype=dtype,
            select_layer=select_layer,
            frames_per_forward=frames_per_forward,
            is_compiled=bool(is_compiled),
            revision=revision,
        )
    if family == "huggingface":
        _refuse(family, options, "select_layer", "max_pixels", "min_pixels", "micro_batch")
        from pipeline.encoders.huggingface import huggingface_spec

        return huggingface_spec(
            model,
            dtype=dtype,
            frames_per_forward=frames_per_forward,
            is_compiled=bool(is_compiled),
            revision=revision,
        )
    _refuse(family, options, "select_layer", "frames_per_forward", "is_compiled")
    from pipeline.encoders.qwen2_5_vl import qwen2_5_vl_spec

    return qwen2_5_vl_spec(
        model,
        dtype=dtype,
        revision=revision,
        max_pixels=max_pixels,
        min_pixels=min_pixels,
        micro_batch=micro_batch,
    )


def _refuse(family: str, options: dict[str, int | None], *names: str) -> None:
    for name in names:
        if options[name] is not None:
            raise EncoderError(f"the encoder family {family} has no option {name}")
