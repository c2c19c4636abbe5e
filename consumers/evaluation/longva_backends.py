"""What a LongVA is made of: the user's own, loaded by the package `longva`, or the small one that is built in."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.fitting import Recipe
from pipeline.vision import SamplingRule

SMALL = "small"
_MOST_DIGITS = 18  # of a seed: torch takes 64 bits, and makes several parts from one number


@dataclass(frozen=True)
class Media:
    """One video, or one clip of it."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    fps: float | None = None  # images per second, of a folder of images


@dataclass(frozen=True, eq=False)
class Backend:
    """A loaded model and what stands around it."""

    model: Any
    tokenizer: Any
    encode: Callable[[str], torch.Tensor]  # a prompt with <image> to ids [1, length]
    load_video: Callable[[Media], torch.Tensor]  # to [frames, 3, height, width], float32
    load_images: Callable[[Sequence[Path]], tuple[Any, list[tuple[int, int]]]]  # what the model takes, and their sizes
    recipe: Recipe | None  # of the tower's features, where it can be computed
    checkpoint: Path | None  # the folder with the tower's weights


def load_backend(
    model_path: str, *, nframe: int, sampling: SamplingRule, dtype: str, device_map: str = "auto"
) -> Backend:
    """Load `small`, `small:<seed>`, or a LongVA checkpoint.

    Raises:
        EvaluationError: LongVA is not installed, or the model's name is none.
    """
    require_backend(model_path)
    name, _, seed = model_path.partition(":")
    if name == SMALL:
        return _small(int(seed or 0), nframe=nframe, sampling=sampling, dtype=dtype)
    return _real(model_path, nframe=nframe, sampling=sampling, device_map=device_map)


def require_backend(model_path: str) -> None:
    """Check, before anything is loaded, that there is what loads a model.

    Raises:
        EvaluationError: there is not, or no folder where one is named.
    """
    name, colon, seed = model_path.partition(":")
    if name == SMALL and ((seed.isdecimal() and len(seed) <= _MOST_DIGITS) or not colon):
        return
    if name == SMALL:
        raise EvaluationError(
            f"{model_path} is no model; the built-in ones are small and small:<number> (at most {_MOST_DIGITS} digits)"
        )
    if model_path.startswith((".", "/")) and not os.path.isdir(model_path):
        raise EvaluationError(f"{model_path} is no folder; name a checkpoint's, or an id of the hub")
    try:
        for module in ("constants", "mm_utils", "model.builder"):
            importlib.import_module(f"longva.{module}")
    except ImportError as exc:
        raise EvaluationError(
            f"{model_path} needs the package longva, which cannot be imported ({exc}); install it from its repository, "
            "in the environment in which LongVA runs"
        ) from exc


def _small(seed: int, *, nframe: int, sampling: SamplingRule, dtype: str) -> Backend:
    from consumers.evaluation.small_longva import IMAGE_TOKEN_INDEX, SmallLongVA
    from pipeline.encoders.checkpoint import DTYPES
    from pipeline.encoders.longva import longva_spec
    from pipeline.encoders.small_models import byte_tokenizer
    from pipeline.recipe import video_recipe

    spec = longva_spec(SMALL, dtype=dtype)
    table, tokenizer = spec.preprocess.table(), byte_tokenizer()

    def load_video(media: Media) -> torch.Tensor:
        from pipeline.vision.cuts import Cut
        from pipeline.vision.decoding import decode_video

        cut = Cut(media.start_s, media.end_s)
        options: dict[str, Any] = {"nframe": nframe, "preprocess": spec.preprocess, "cut": cut, "fps": media.fps}
        return table(torch.from_numpy(decode_video(media.path, sampling=sampling, **options).pixels))

    def load_images(paths: Sequence[Path]) -> tuple[Any, list[tuple[int, int]]]:
        from pipeline.vision.images import read_image

        pictures = [read_image(path) for path in paths]
        pixels = [table(torch.from_numpy(spec.preprocess(picture))[None]) for picture in pictures]
        return pixels, [(picture.shape[1], picture.shape[0]) for picture in pictures]

    return Backend(
        model=SmallLongVA(seed=seed, dtype=DTYPES[dtype]),
        tokenizer=tokenizer,
        encode=lambda prompt: _ids(prompt, tokenizer, IMAGE_TOKEN_INDEX),
        load_video=load_video,
        load_images=load_images,
        recipe=video_recipe(spec, nframe=nframe, sampling=sampling.name),
        checkpoint=None,
    )


def _ids(prompt: str, tokenizer: Any, image_token: int) -> torch.Tensor:
    ids: list[int] = []
    for number, part in enumerate(prompt.split("<image>")):
        ids += ([image_token] if number else []) + tokenizer(part, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids])


def _real(model_path: str, *, nframe: int, sampling: SamplingRule, device_map: str) -> Backend:
    from longva.constants import IMAGE_TOKEN_INDEX
    from longva.mm_utils import process_images, tokenizer_image_token
    from longva.model.builder import load_pretrained_model

    try:
        tokenizer, model, processor, _ = load_pretrained_model(model_path, None, "llava_qwen", device_map=device_map)
    except Exception as exc:  # transformers and safetensors have error types of their own
        raise EvaluationError(f"{model_path} cannot be loaded: {exc or type(exc).__name__}") from exc
    model.eval()

    def load_images(paths: Sequence[Path]) -> tuple[Any, list[tuple[int, int]]]:
        from PIL import Image

        from pipeline.vision.images import read_image

        pictures = [Image.fromarray(read_image(path)) for path in paths]
        return process_images(pictures, processor, model.config), [picture.size for picture in pictures]

    def load_video(media: Media) -> torch.Tensor:
        frames = _frames_by_decord(media, nframe=nframe, sampling=sampling)
        pixels: torch.Tensor = processor.preprocess(frames, return_tensors="pt")["pixel_values"]
        return pixels

    return Backend(
        model=model,
        tokenizer=tokenizer,
        encode=lambda prompt: tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None],
        load_video=load_video,
        load_images=load_images,
        recipe=None,
        checkpoint=checkpoint_folder(model_path),
    )


def _frames_by_decord(media: Media, *, nframe: int, sampling: SamplingRule) -> Any:
    """Return uint8 [frames, height, width, 3] as LongVA's own code reads them."""
    import decord

    if media.path.is_dir():
        raise EvaluationError(
            f"{media.path} is a folder of images, which LongVA's decoder does not read; build it first"
        )
    reader = decord.VideoReader(str(media.path), ctx=decord.cpu(0))
    clip = range(len(reader))
    if media.start_s is not None or media.end_s is not None:
        # The one rule that says which frames a clip has reads the file's packets.
        from pipeline.vision.cuts import Cut, frames_of
        from pipeline.vision.survey import survey_video

        clip = frames_of(Cut(media.start_s, media.end_s), survey_video(media.path))
    chosen = sampling.indices(len(clip), count=nframe, fps=reader.get_avg_fps())
    return reader.get_batch([clip[i] for i in chosen]).asnumpy()


def checkpoint_folder(model_path: str) -> Path | None:
    """Return the folder of a checkpoint or of a hub id's snapshot; None where there is none."""
    from pipeline.encoders.checkpoint import find_checkpoint
    from pipeline.errors import EncoderError

    try:
        return find_checkpoint(model_path, None)
    except (EncoderError, ImportError):
        return None
