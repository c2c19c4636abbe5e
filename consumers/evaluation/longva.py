"""LongVA with a vision cache in front of its tower, by the interface of the earlier scripts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cache_store import model_signature as signature_of
from consumers.evaluation.cached_tower import CachedVisionTower, OnDifference, Request
from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.longva_backends import Media, load_backend
from consumers.evaluation.statistics import CacheStatistics
from consumers.evaluation.stored_features import OnMiss, OnStale, find_video_id, open_store
from pipeline.vision import SamplingRule

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{images}{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
GENERATION = {"do_sample": False, "num_beams": 1, "use_cache": True, "max_new_tokens": 1024}


class LongVA_Cached:
    """LongVA that reads a video's features instead of decoding and encoding it. Statistics are printed at the end.

    Args:
        model_path: a LongVA checkpoint, for which the package `longva` is needed, or `small`, `small:<seed>`.
        cache_dir: the store's root, a folder or a URL; None, as `enable_cache=False`, runs without a cache.
        nframe: frames of a video at most, as the build was told.
        dataset: of messages that name none.
        sampling: the rule for frames, as the build was told.
        dtype: of the small model.
        device_map: of a checkpoint.
        on_miss, on_stale, echo, on_difference, cast: as in `CachedVisionTower`.
        generation: options of `generate`, over those of the earlier scripts.

    Raises:
        EvaluationError: LongVA is not installed, or there is no store.
        ValueError: `on_miss`, `on_stale` or `on_difference` is no word for it, or `echo` no share.
    """

    def __init__(
        self,
        model_path: str = "lmms-lab/LongVA-7B",
        cache_dir: str | Path | None = None,
        enable_cache: bool = True,
        nframe: int = 128,
        *,
        dataset: str = "Video-MME",
        sampling: str = "source",
        dtype: str = "float16",
        device_map: str = "auto",
        on_miss: OnMiss = "live",
        on_stale: OnStale = "error",
        cast: bool = False,
        echo: float = 0.0,
        on_difference: OnDifference = "raise",
        **generation: Any,
    ) -> None:
        self.model_path, self.nframe, self.dataset = str(model_path), nframe, dataset
        rule = SamplingRule.parse(sampling)
        # Made before the model, which takes minutes to load.
        store = open_store(cache_dir, on_miss) if enable_cache and cache_dir is not None else None
        self.backend = load_backend(self.model_path, nframe=nframe, sampling=rule, dtype=dtype, device_map=device_map)
        self.model, self.tokenizer = self.backend.model, self.backend.tokenizer
        self._generation = {**GENERATION, **generation}
        self.statistics = CacheStatistics()
        config = self.model.config
        self.model_signature = signature_of(str(config.mm_vision_tower), int(config.mm_vision_select_layer))
        self.cache = None
        if store is not None:
            self.cache = CachedVisionTower(
                self.model,
                store,
                dataset=dataset,
                nframe=nframe,
                model_signature=self.model_signature,
                recipe=self.backend.recipe,
                checkpoint=self.backend.checkpoint,
                sampling=rule.name,
                on_miss=on_miss,
                on_stale=on_stale,
                cast=cast,
                echo=echo,
                on_difference=on_difference,
                statistics=self.statistics,
            )
            # At the end of the program, or when the object goes, whichever comes first; once.
            self._finalizer = weakref.finalize(self, print_block, self.statistics)

    @property
    def enable_cache(self) -> bool:
        """Whether features are read from a store."""
        return self.cache is not None

    def close(self) -> None:
        """Print the statistics now instead of at the end."""
        if self.cache is not None:
            self._finalizer()
            self.cache.stored.store.close()

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer a message of VLMEvalKit's form, greedily unless `generation` says otherwise.

        An item is `{"type": "video" | "image" | "text", "value": path or text}`. A video's item may have `video_id`,
        `start` and `end` in seconds; without an id it is found by its path.
        """
        with torch.inference_mode(), self._asked(message, dataset) as inputs:
            ids = self.model.generate(**inputs, **self._generation)
        return str(self.tokenizer.batch_decode(ids, skip_special_tokens=True)[0]).strip()

    def letter_logits(
        self,
        message: Sequence[Mapping[str, Any]],
        letters: Sequence[str],
        dataset: str | None = None,
        *,
        live: CacheStatistics | None = None,
    ) -> torch.Tensor:
        """Return the logits `[letters]`, float32 on the CPU, of each option letter as the answer's first token.

        With `live` the cache is left out, and what a video then takes is noted there.

        Raises:
            EvaluationError: a letter is more than one token, or the logits are no finite numbers.
        """
        ids = [self.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in letters]
        if any(len(one) != 1 for one in ids):
            raise EvaluationError(f"the letters {', '.join(letters)} are not one token each")
        with torch.inference_mode(), self._asked(message, dataset, live) as inputs:
            logits = self.model(**inputs).logits[0, -1]
        found = torch.stack([logits[one[0]] for one in ids]).float().cpu()
        if not found.isfinite().all():
            raise EvaluationError(
                f"the logits are no finite numbers in {logits.dtype}; load the model in another dtype"
            )
        return found

    @contextmanager
    def _asked(
        self, message: Sequence[Mapping[str, Any]], dataset: str | None, live: CacheStatistics | None = None
    ) -> Iterator[dict[str, Any]]:
        """Let the tower answer from the cache while the model is given the inputs that this yields."""
        videos = [item for item in message if item["type"] == "video"]
        images = [Path(item["value"]) for item in message if item["type"] == "image"]
        text = "\n".join(str(item["value"]) for item in message if item["type"] == "text")
        if len(videos) > 1 or (videos and images):
            raise EvaluationError("a message holds one video, or images; not several videos, and not both")
        if not videos:
            yield self._image_inputs(images, text)
        elif self.cache is None:
            yield self._video_inputs(videos[0], text, None)
        elif live is not None:
            with self.cache.live(live) as request:
                yield self._video_inputs(videos[0], text, request)
        else:
            name = dataset or self.dataset
            with self.cache.request(self.video_id_of(videos[0], name), dataset=name) as request:
                yield self._video_inputs(videos[0], text, request)

    def _image_inputs(self, images: Sequence[Path], text: str) -> dict[str, Any]:
        """Images are encoded live: the cache holds videos."""
        ids = self._ids(len(images), text)
        if not images:
            return {"input_ids": ids}
        pixels, sizes = self.backend.load_images(images)
        ready = [self._on_device(one) for one in pixels]
        return {"input_ids": ids, "images": ready, "modalities": ["image"] * len(images), "image_sizes": sizes}

    def _video_inputs(self, item: Mapping[str, Any], text: str, request: Request | None) -> dict[str, Any]:
        media = Media(Path(item["value"]), item.get("start"), item.get("end"), item.get("fps"))

        def live() -> torch.Tensor:
            return self._on_device(self.backend.load_video(media))

        pixels = live() if request is None else request.pixels(live)
        return {"input_ids": self._ids(1, text), "images": [pixels], "modalities": ["video"]}

    def video_id_of(self, item: Mapping[str, Any], dataset: str) -> str:
        """Return the id of a video's item; see `find_video_id`."""
        return find_video_id(None if self.cache is None else self.cache.stored, item, dataset)

    def _ids(self, num_images: int, text: str) -> torch.Tensor:
        images = "<image>" * num_images + "\n" if num_images else ""
        return self.backend.encode(PROMPT.format(images=images, text=text)).to(self.model.device)

    def _on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        tower = self.model.get_vision_tower()
        return pixels.to(self.model.device, next(tower.parameters()).dtype)


def print_block(statistics: CacheStatistics) -> None:
    """Print the statistics, if there was a request."""
    if statistics.hits + statistics.misses:
        print(statistics.block(), flush=True)
