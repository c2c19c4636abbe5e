"""Everything that changes the numbers of a feature, as one mapping; `cache_store.recipe_fingerprint` digests it.

The recipe is what was asked for. What happened (the decoder that was used, the sampled frames, library versions) is
provenance: stored, shown, never compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from cache_store import int8
from pipeline.encoders.base import Json, StepEncoderSpec, VideoEncoderSpec
from pipeline.vision import PartialFrames

RECIPE_VERSION = 1

StoreDtype = Literal["int8"]  # other than the tower's own

# Whose pixels a file gives, so part of what was asked for. Which library computes them is provenance: where PyAV gives
# decord's bits, `pipeline.vision.open_video` asks it first.
DECODER_POLICY = "decord where its seeks are exact, else PyAV"


def video_recipe(
    spec: VideoEncoderSpec,
    *,
    nframe: int,
    sampling: str,
    partial_frames: PartialFrames = "refuse",
    store_dtype: StoreDtype | None = None,
) -> dict[str, Json]:
    """Return the recipe of every video of one build: the model's own part, the sampling rule and the decoder.

    A build that allows partial frames has another recipe, so nobody who asks for whole videos gets a part of one; and
    one that stores int8 has another, so nobody who asks for exact features gets those.
    """
    frames: dict[str, Json] = {"sampling": sampling, "nframe": nframe, "decoder": DECODER_POLICY}
    if partial_frames == "allow":
        frames["partial_frames"] = "allow"
    recipe: dict[str, Json] = {"version": RECIPE_VERSION, "encoder": dict(spec.recipe()), "frames": frames}
    return {**recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)} if store_dtype == "int8" else recipe


def step_recipe(spec: StepEncoderSpec, *, instruction: str, views: Sequence[str], from_video: bool) -> dict[str, Json]:
    """Return the recipe of one VLM step: the model's own part, the views in their order, and the instruction's digest.

    `from_video` says that the images are frames of a video file, so that the decoder is part of the recipe.
    """
    return {
        "version": RECIPE_VERSION,
        "encoder": dict(spec.recipe()),
        "images": {"views": list(views), "decoder": DECODER_POLICY if from_video else "PIL"},
        "prompt": _prompt(instruction),
    }


def with_instruction(recipe: Mapping[str, Json], instruction: str) -> dict[str, Json]:
    """Return a step's recipe as it would be with this instruction: what a reader with one of its own compares with.

    A recipe that tells of no instruction stays as it is.
    """
    return {**recipe, "prompt": _prompt(instruction)} if "prompt" in recipe else dict(recipe)


def with_views(recipe: Mapping[str, Json], views: Sequence[str]) -> dict[str, Json]:
    """Return a step's recipe as it would be of these views, in their order. One that names no views stays as it is."""
    return {**recipe, "images": {**_images(recipe), "views": list(views)}} if views_of(recipe) else dict(recipe)


def views_of(recipe: Mapping[str, Json]) -> list[str]:
    """Return the views that a step's recipe names; none where it names none."""
    views = _images(recipe).get("views")
    return list(map(str, views)) if isinstance(views, list) else []


def _images(recipe: Mapping[str, Json]) -> Mapping[str, Json]:
    images = recipe.get("images")
    return images if isinstance(images, Mapping) else {}


def _prompt(instruction: str) -> Json:
    return {"instruction_sha256": hashlib.sha256(instruction.encode()).hexdigest()}
