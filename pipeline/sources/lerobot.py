"""LeRobot data sets of version 2.0, 2.1 and 3.0: one feature for each VLM step of each episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.errors import MediaError, SourceError
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.episode import stated_instruction
from pipeline.sources.lerobot_meta import Episode, LeRobotLayout, read_info
from pipeline.sources.lerobot_v2 import LeRobotV2
from pipeline.sources.lerobot_v3 import LeRobotV3
from pipeline.sources.media_path import MediaPath
from pipeline.sources.samples import IgnoredFile, StepSample, VideoFrame
from pipeline.sources.vlm_index import lerobot_vlm_idx


def lerobot_episode_name(dataset: str, episode_index: int) -> str:
    """Return the name under which an episode's features are filed, for the build that writes and loaders that read."""
    return f"{dataset}_episode_{episode_index:06d}"


class LeRobot:
    """The steps of every episode, in episode order, named `<dataset>_episode_000007`.

    A step's images are the frames of the episode's videos at the step's row: timestamps of real sets are off by one.
    An episode whose rows are not its frames 0, 1, 2, ... is one problem.

    Raises:
        SourceError: the folder is no LeRobot data set of a version that is read, two of its episodes have one index,
            no camera has files, a view asked for is not there, or a view's videos have another rate than the rows.
    """

    def __init__(
        self,
        root: MediaPath,
        *,
        dataset: str | None = None,
        views: Sequence[str] | None = None,
        instruction: str | None = None,
        vlm_reuse_count: int = 3,
    ) -> None:
        self._folder = DataFolder(root)
        self.dataset = self._folder.name if dataset is None else dataset
        self._instruction, self._vlm_reuse_count = instruction, vlm_reuse_count
        self._info = read_info(self._folder)
        is_v3 = self._info.version.startswith("v3.")
        self._layout: LeRobotLayout = (LeRobotV3 if is_v3 else LeRobotV2)(self._folder, self._info)
        if not self._layout.episodes:
            raise SourceError(f"{self._folder.root}: its meta folder lists no episode")
        self._ignored: list[IgnoredFile] = []
        self._views = self._choose_views(views)

    def _choose_views(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        cameras, stills = self._info.features_of("video"), self._info.features_of("image")
        # info.json of real sets lists cameras that were never recorded; for all others the first episodes tell.
        with_files = [
            view for view in cameras if any(self._layout.has_video(episode, view) for episode in self._layout.episodes)
        ]
        for view in sorted({*cameras, *stills} - {*with_files}):
            reason = (
                "images inside parquet files are not read" if view in stills else "info.json lists it without files"
            )
            self._ignored.append(IgnoredFile(self._folder.place(f"videos/{view}"), reason))
        missing = sorted(set(wanted or ()) - set(with_files))
        if missing or not with_files:
            asked = f"no view {', '.join(missing)}" if missing else "no camera has video files"
            raise SourceError(f"{self._folder.root}: {asked}; there are {', '.join(with_files) or 'none'}")
        views = tuple(sorted(set(wanted))) if wanted else tuple(with_files)
        self._require_rate(views)
        return views

    def _require_rate(self, views: Sequence[str]) -> None:
        rates = {view: fps for view, fps in self._info.video_fps.items() if view in views}
        others = [f"{fps:g} for {view}" for view, fps in sorted(rates.items()) if not self._layout.has_rate(view, fps)]
        if others:
            raise SourceError(
                f"{self._folder.place('meta/info.json')}: video.fps is {', '.join(others)}, and the data set has "
                f"{self._info.fps:g} rows a second: its rows are not the frames; leave such cameras out with --views, "
                "or correct video.fps if their videos do have one frame for each row"
            )

    def __iter__(self) -> Iterator[StepSample]:
        for episode in self._layout.episodes:
            name = lerobot_episode_name(self.dataset, int(episode["episode_index"]))
            try:
                instructions = self._instructions(episode)
                firsts = [self._layout.first_frame(episode, view) for view in self._views]
            except MediaError as exc:
                yield StepSample(name, 0, (), "", problem=str(exc))
                continue
            for row in range(len(instructions)):
                # The first row of a step stands for the rows that share it.
                if lerobot_vlm_idx(row, vlm_reuse_count=self._vlm_reuse_count) == row:
                    images = tuple(VideoFrame(f.view, f.path, f.frame_index + row) for f in firsts)
                    yield StepSample(name, row, images, instructions[row])

    def _instructions(self, episode: Episode) -> list[str]:
        """Return the instruction of every row of an episode, and with it how many rows there are."""
        tasks = self._layout.task_indices(episode)
        if self._instruction is not None:
            return [self._instruction] * len(tasks)
        unknown = sorted(set(tasks) - set(self._layout.tasks))
        if unknown:
            raise MediaError(f"{self._layout.tasks_file} names no task_index {unknown[0]}, which the episode has")
        for task in sorted(set(tasks)):
            stated_instruction(self._layout.tasks[task])  # refuses half a surrogate pair
        return [self._layout.tasks[task] for task in tasks]

    def ignored(self) -> list[IgnoredFile]:
        """Return the cameras that `info.json` lists and that cannot be read, by name."""
        return list(self._ignored)
