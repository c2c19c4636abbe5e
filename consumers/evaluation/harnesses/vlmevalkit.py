"""`LongVA_Cached` in VLMEvalKit without an edit there: its class, model and data set entries, a launcher of `run.py`.

python -m consumers.evaluation.harnesses.vlmevalkit VLMEvalKit/run.py --config examples/evaluate/vlmevalkit.json
VLM_CACHE_DIR=/cache/longva python -m consumers.evaluation.harnesses.vlmevalkit VLMEvalKit/run.py \
    --model LongVA-7B-Cached --data Video-MME_128frame
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.harnesses.misses import MissTeller
from consumers.evaluation.longva import LongVA_Cached

NFRAME = 128

# The three models of the earlier guide, which share one tower and so one cache.
MODELS = {
    "LongVA-7B": "lmms-lab/LongVA-7B-DPO",
    "LongVA-Temporal-v1": "Eculid/Temporal-v1",
    "LongVA-Temporal-v2": "Eculid/Temporal-v2",
}

# Class in `vlmeval.dataset`, of each benchmark that a build knows. VLMEvalKit has entries with 8 and 64 frames.
DATASETS = {
    "Video-MME": "VideoMME",
    "LongVideoBench": "LongVideoBench",
    "VideoMMMU": "VideoMMMU",
    "MVBench_MP4": "MVBench_MP4",
    "TempCompass": "TempCompass",
    "MLVU": "MLVU",
}


def register(cache_dir: str | Path | None = None) -> None:
    """Add to VLMEvalKit, in this process: the class for `--config`, and entries for `--model` and `--data`.

    Models are called as in `MODELS`, and `<name>-Cached` with `cache_dir` as their cache; data sets `<name>_128frame`.
    What VLMEvalKit, or a fork of it, has under these names stays.
    """
    import vlmeval.dataset
    import vlmeval.vlm
    from vlmeval.config import supported_VLM
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    adapter = model_class()
    vlmeval.vlm.LongVA_Cached = adapter
    for name, path in MODELS.items():
        supported_VLM.setdefault(name, partial(adapter, model_path=path, enable_cache=False))
        supported_VLM.setdefault(f"{name}-Cached", partial(adapter, model_path=path, cache_dir=cache_dir))
    for dataset, class_name in DATASETS.items():
        made = partial(getattr(vlmeval.dataset, class_name), dataset=dataset, nframe=NFRAME)
        supported_video_datasets.setdefault(f"{dataset}_{NFRAME}frame", made)


def model_class() -> type:
    """Return `LongVA_Cached` as a model of VLMEvalKit, which must be importable."""
    from vlmeval.vlm.base import BaseModel

    class Adapter(BaseModel):  # type: ignore[misc]  # VLMEvalKit has no types
        """A cached LongVA; arguments and errors are those of `consumers.evaluation.LongVA_Cached`."""

        INSTALL_REQ = False
        INTERLEAVE = True
        VIDEO_LLM = True

        def __init__(
            self,
            model_path: str = "lmms-lab/LongVA-7B",
            cache_dir: str | Path | None = None,
            enable_cache: bool = True,
            nframe: int = NFRAME,
            **options: Any,
        ) -> None:
            super().__init__()
            if enable_cache and cache_dir is None:
                raise EvaluationError(f"{model_path}: no cache_dir; set VLM_CACHE_DIR, or pass enable_cache=False")
            self.longva = LongVA_Cached(model_path, cache_dir, enable_cache, nframe, **options)
            self.model_signature = self.longva.model_signature
            self.fps = -1
            cache = self.longva.cache
            self._misses = None if cache is None else MissTeller(cache.stored.store, cache.statistics)

        @property
        def nframe(self) -> int:
            return self.longva.nframe

        @nframe.setter
        def nframe(self, wanted: int | None) -> None:
            # VLMEvalKit sets it to the data set's own number, and to None for data sets by frame rate.
            if wanted != self.longva.nframe:
                asked = "frames by rate" if wanted is None else f"{wanted} frames"
                raise EvaluationError(
                    f"the data set asks for {asked}, and the model was made for nframe={self.longva.nframe}, which is "
                    "part of its features' names; give both the same number in --config"
                )

        def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
            answer = self.longva.generate_inner(message, dataset)
            video = next((item for item in message if item["type"] == "video"), None)
            if self._misses is not None and video is not None:
                self._misses.look(dataset or self.longva.dataset, Path(video["value"]).stem, self.longva.nframe)
            return answer

    Adapter.__name__ = Adapter.__qualname__ = "LongVA_Cached"
    return Adapter


def main(arguments: Sequence[str] | None = None) -> None:
    """Register, then run VLMEvalKit's own `run.py` with the arguments that follow it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or not given[0].endswith(".py"):
        raise SystemExit(f"usage: python -m {__spec__.name} VLMEvalKit/run.py ARGUMENTS...\n{__doc__}")
    register(os.environ.get("VLM_CACHE_DIR"))
    sys.argv = given
    sys.path.insert(0, str(Path(given[0]).resolve().parent))  # as Python does for a script
    runpy.run_path(given[0], run_name="__main__")


if __name__ == "__main__":
    main()
