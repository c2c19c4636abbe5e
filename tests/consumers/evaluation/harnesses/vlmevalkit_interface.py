"""What VLMEvalKit promises to its models, restated: the modules that an adapter may touch, and the loop that asks.

From its documentation of custom models and of `--config`, and its `run.py` and `inference_video.py` of August 2026.
"""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any


class BaseModel:
    """`vlmeval.vlm.base.BaseModel` as far as a video model meets it."""

    allowed_types = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func = None

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        for item in message:
            if item["type"] not in self.allowed_types:
                raise ValueError(item["type"])
        return self.generate_inner(message, dataset)


class VideoDataset:
    """A benchmark of one question. `parts`, where a benchmark joins several, replaces its name from question on."""

    def __init__(self, dataset: str, nframe: int = 0, fps: float = -1) -> None:
        self.dataset_name, self.nframe, self.fps = dataset, nframe, fps
        self.parts: tuple[str, ...] = ()
        self.path = ""

    def build_prompt(self, video_llm: bool) -> list[dict[str, Any]]:
        if not video_llm:
            raise NotImplementedError("frames as images")
        return [
            {"type": "text", "value": "Watch the video.", "role": "system"},
            {"type": "video", "value": self.path},
            {"type": "text", "value": "\nWhy?"},
        ]


CLASSES = ("VideoMME", "LongVideoBench", "VideoMMMU", "MVBench_MP4", "TempCompass", "MLVU")


def install(monkeypatch: Any) -> None:
    """Put the package's modules where an import finds them."""
    names = ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base", "vlmeval.config", "vlmeval.dataset", "vlmeval.api")
    made = {name: types.ModuleType(name) for name in (*names, "vlmeval.dataset.video_dataset_config")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
        above, _, last = name.rpartition(".")
        if above:
            setattr(made[above], last, module)
    made["vlmeval.vlm.base"].BaseModel = BaseModel
    made["vlmeval.config"].supported_VLM = {"LongVA-Temporal-v1": "a fork's own"}
    for name in CLASSES:
        setattr(made["vlmeval.dataset"], name, type(name, (VideoDataset,), {}))
    made["vlmeval.dataset.video_dataset_config"].supported_video_datasets = {
        "Video-MME_8frame": partial(made["vlmeval.dataset"].VideoMME, dataset="Video-MME", nframe=8)
    }


def build_model_from_config(config: dict[str, Any]) -> Any:
    """As `run.py` does: the class is looked for by name, the rest are its arguments."""
    import vlmeval.api
    import vlmeval.vlm

    options = dict(config)
    name = options.pop("class")
    return (
        getattr(vlmeval.api, name)(**options) if hasattr(vlmeval.api, name) else getattr(vlmeval.vlm, name)(**options)
    )


def infer(model: Any, dataset: VideoDataset) -> list[str]:
    """As `infer_data` does: the model takes the data set's number of frames, and a part's name replaces the whole's."""
    answers = []
    for name in dataset.parts or (dataset.dataset_name,):
        if getattr(model, "nframe", None) is not None and model.nframe > 0:
            if dataset.nframe > 0:
                if model.nframe != dataset.nframe:
                    model.nframe = dataset.nframe
            elif getattr(model, "fps", 0) == 0:
                raise ValueError("fps is not suitable")
            else:
                model.nframe = None
        struct = dataset.build_prompt(video_llm=getattr(model, "VIDEO_LLM", False))
        answers.append(model.generate(message=struct, dataset=name))
    return answers
