"""The episodes that this process reads from: opened when a sample needs them, the last used ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from consumers.training.new_format import NewFormatData
from consumers.training.old_format import OldFormatData
from pipeline.errors import MediaError
from pipeline.sources.episode import Episode
from pipeline.sources.new_episode import NewEpisode
from pipeline.sources.old_episode import OldEpisode
from pipeline.sources.vla_episodes import Format

MOST_OPEN = 64
# Compressed sensors are read whole, some 40 MB for each minute.
KEPT_BYTES = 256 << 20


class EpisodeData(Protocol):
    """Windows of one episode by sample, as `OldFormatData` and `NewFormatData` describe them."""

    @property
    def episode(self) -> Episode: ...

    @property
    def kept_bytes(self) -> int: ...

    def sensor_window(self, sample: int, size: int) -> np.ndarray: ...

    def robot_window(self, sample: int, size: int) -> np.ndarray: ...

    def actions(self, sample: int, horizon: int) -> np.ndarray: ...

    def require_finite_windows(self, samples: Sequence[int], *, sensor_size: int, robot_size: int) -> None: ...

    def timestamp(self, vlm_idx: int) -> float | None: ...


class OpenEpisodes:
    """At most `MOST_OPEN` episodes, and about `KEPT_BYTES` of their arrays; the least recently used are dropped."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, EpisodeData] = OrderedDict()

    def get(self, key: str, opened: Callable[[], EpisodeData]) -> EpisodeData:
        """Return the episode of a key, by `opened()` if it is not open."""
        data = self._open.pop(key, None) or opened()
        self._open[key] = data
        kept_bytes = sum(one.kept_bytes for one in list(self._open.values()))
        while len(self._open) > 1 and (len(self._open) > MOST_OPEN or kept_bytes > KEPT_BYTES):
            kept_bytes -= self._open.popitem(last=False)[1].kept_bytes
        return data


OF_THIS_PROCESS = OpenEpisodes()


def opened_episode(
    folder: Path, kind: Format, *, vlm_reuse_count: int, action_expert_hz: float, horizon: int
) -> OldEpisode | NewEpisode:
    """Return what the build knows of an episode: its samples, their steps and images. Raises `MediaError`."""
    try:
        if kind == "old":
            return OldEpisode(folder, vlm_reuse_count=vlm_reuse_count, horizon=horizon)
        return NewEpisode(folder, vlm_reuse_count=vlm_reuse_count, action_expert_hz=action_expert_hz)
    except MediaError as exc:
        raise MediaError(f"episode {folder}: {exc}") from exc


def has_sensor(episode: OldEpisode | NewEpisode) -> bool:
    """Return whether the episode has a sensor, without reading it."""
    if isinstance(episode, NewEpisode):
        return bool(episode.sensor_files())
    return episode.sensor_data is not None or (episode.folder / "sensor_data.npy").is_file()


def has_robot_states(episode: OldEpisode | NewEpisode) -> bool:
    """Return whether the episode has robot states, without reading them."""
    return any((episode.folder / f"robot_states.{suffix}").is_file() for suffix in ("npz", "csv"))


def data_of(episode: OldEpisode | NewEpisode, *, has_sensor: bool, has_robot_states: bool) -> EpisodeData:
    """Return the windows of an episode, without those that it is not to have, which are not opened.

    The new format's actions are made of its robot states, whatever is asked for.

    Raises:
        MediaError: arrays of wrong shapes, with the folder's name.
    """
    try:
        if isinstance(episode, OldEpisode):
            return OldFormatData(episode, has_sensor=has_sensor, has_robot_states=has_robot_states)
        return NewFormatData(episode, has_sensor=has_sensor)
    except MediaError as exc:
        raise MediaError(f"episode {episode.folder}: {exc}") from exc
