"""MVBench: 20 tasks over the videos of eleven data sets; five ask about a part of a video, one about folders of images.

The repository's main branch (OpenGVLab/MVBench) ships `json/<task>.json` with `video` and, for the five tasks,
`start` and `end` in seconds, and zips that VLMEvalKit unpacks to `video/<folder of the task>/`; its `MVBench.tsv`
states `prefix`, `data_type` (`video`, `gif`, `frame`), `bound`, `start` and `end`. Folders of images hold
`00001.jpg` and so on, three a second. The branch `video`, which lmms-eval and VLMEvalKit's `MVBench_MP4` read,
ships the parts cut out and everything as video files, under other folders and without bounds; its `test.json` has
the folder of each task in `root` and the questions in `meta`. Some zips unpack to `data0613/` first.
"""

from __future__ import annotations

from typing import Any

from pipeline.sources.benchmark import Layout, Place, Row

IMAGES_FPS = 3.0

# Task: folder on the main branch, folder on the branch `video`.
FOLDERS = {
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "action_count": ("perception/videos", "perception/videos"),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "character_order": ("perception/videos", "perception/videos"),
    "counterfactual_inference": ("clevrer/video_validation", "clevrer/video_validation"),
    "egocentric_navigation": ("vlnqa", "vlnqa"),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", "Moments_in_Time_Raw/videos"),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "moving_attribute": ("clevrer/video_validation", "clevrer/video_validation"),
    "moving_count": ("clevrer/video_validation", "clevrer/video_validation"),
    "moving_direction": ("clevrer/video_validation", "clevrer/video_validation"),
    "object_existence": ("clevrer/video_validation", "clevrer/video_validation"),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_shuffle": ("perception/videos", "perception/videos"),
    "scene_transition": ("scene_qa/video", "scene_qa/video"),
    "state_change": ("perception/videos", "perception/videos"),
    "unexpected_action": ("FunQA_test/test", "FunQA_test/test"),
}
BOUND_TASKS = frozenset(
    ["action_localization", "action_prediction", "action_sequence", "episodic_reasoning", "object_interaction"]
)
IMAGE_TASKS = frozenset(["episodic_reasoning"])


def _task(row: Row) -> str:
    return row.text("task_type") or row.stem


def _places(row: Row) -> list[Place]:
    video, task = row.text("video"), _task(row).lower().replace(" ", "_").replace("-", "_")
    prefix = row.text("prefix")
    if prefix is not None:
        # The TSV of the branch `video`, and its `test.json`, have no column `bound`: their videos are cut.
        is_bound = (row.text("bound") or "").lower() in ("true", "1", "1.0")
        return [_whole(row, f"{prefix}/{video}", is_bound=is_bound, is_images=row.text("data_type") == "frame")]
    if task not in FOLDERS:
        raise ValueError(f"{task!r} is no task of MVBench; its questions need a column prefix")
    whole, cut = FOLDERS[task]
    is_bound, is_images = task in BOUND_TASKS, task in IMAGE_TASKS
    places = []
    for above in ("video", "video/data0613", ".", "data0613"):
        places.append(_whole(row, f"{above}/{whole}/{video}", is_bound=is_bound, is_images=is_images))
        if cut != whole:
            places.append(Place(f"{above}/{cut}/{video}"))
    return places


def _whole(row: Row, path: str, *, is_bound: bool, is_images: bool) -> Place:
    start_s, end_s = (row.number_of("start"), row.number_of("end")) if is_bound else (None, None)
    return Place(path, start_s, end_s, IMAGES_FPS if is_images else None)


def _unfold(whole: Any) -> list[dict[str, Any]]:
    """Return the rows of the branch `video`'s `test.json`."""
    if not isinstance(whole, dict):
        raise ValueError("expected a list of questions, or an object with root and meta")
    return [
        {**row, "task_type": task, "prefix": whole["root"][task]}
        for task, rows in whole["meta"].items()
        for row in rows
    ]


MVBENCH = Layout(
    dataset="MVBench",
    annotations=("json/*.json", "test.json", "MVBench.tsv", "MVBench_MP4.tsv"),
    video_columns=("video",),
    other_columns=("prefix", "data_type", "bound", "start", "end", "task_type"),
    places=_places,
    answer_is="text",
    stems_repeat=True,
    question_id=("question_id", "index"),
    question_type=(),
    task=_task,
    unfold=_unfold,
)
