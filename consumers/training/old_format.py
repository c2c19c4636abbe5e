"""What a sample of an old-format episode holds: windows that run forward from its row."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from consumers.training.actions import action_window, recorded_actions
from consumers.training.robot_states import (
    STATE_WIDTH,
    HeldRows,
    Rows,
    require_finite,
    require_finite_rows,
    robot_states,
    zero_padded,
)
from pipeline.errors import MediaError
from pipeline.sources.array_files import array_file
from pipeline.sources.old_episode import OldEpisode

SENSOR_WIDTH = 1026
_SENSOR, _ROBOT = "the sensor", "the robot's state"

logger = logging.getLogger("consumers.training")


class OldFormatData:
    """Windows of an episode's arrays, float32, by sample. Raises `MediaError` where a file or a shape is wrong."""

    def __init__(self, episode: OldEpisode, *, has_sensor: bool, has_robot_states: bool) -> None:
        self.episode = episode
        if episode.actions.ndim != 2 or episode.actions.shape[1] != 7:
            raise MediaError(f"data.pkl: action must be [T, 7]; found {list(episode.actions.shape)}")
        self._actions = recorded_actions(episode.actions)
        self._sensor = _sensor(episode) if has_sensor else None
        episode.sensor_data = None  # held once, or not at all
        robot = robot_states(episode.folder) if has_robot_states else None
        self._robot = None if robot is None else robot.states

    @property
    def kept_bytes(self) -> int:
        """How much memory the arrays take."""
        return self._actions.nbytes + sum(rows.kept_bytes for rows in (self._sensor, self._robot) if rows is not None)

    def sensor_window(self, sample: int, size: int) -> np.ndarray:
        """Return `[size, 1026]`, force first: rows from the sample's own on, then zeros."""
        return self._forward(self._sensor, sample, size, SENSOR_WIDTH, _SENSOR)

    def robot_window(self, sample: int, size: int) -> np.ndarray:
        """Return `[size, 12]`: rows from the sample's own on, then zeros."""
        return self._forward(self._robot, sample, size, STATE_WIDTH, _ROBOT)

    def actions(self, sample: int, horizon: int) -> np.ndarray:
        """Return `[horizon, 7]`: rows from the sample's own on; behind the end the last is repeated."""
        return require_finite(action_window(self._actions, sample, horizon), f"{self.episode.name}: action")

    def require_finite_windows(self, samples: Sequence[int], *, sensor_size: int, robot_size: int) -> None:
        """Look at all windows of ascending samples, each row once; a size of 0 leaves its array closed."""
        for rows, size, what in ((self._sensor, sensor_size, _SENSOR), (self._robot, robot_size, _ROBOT)):
            if rows is not None:
                spans = (range(sample, sample + size) for sample in samples if size)
                require_finite_rows(rows, spans, f"{self.episode.name}: {what}")

    def timestamp(self, vlm_idx: int) -> float | None:
        """Return nothing: the format records no times."""
        return None

    def _forward(self, rows: Rows | None, start: int, size: int, width: int, what: str) -> np.ndarray:
        if rows is None:
            return np.zeros((size, width), np.float32)
        return require_finite(zero_padded(rows.rows(start, start + size), size), f"{self.episode.name}: {what}")


def _sensor(episode: OldEpisode) -> Rows | None:
    """The sensor's rows `[T, 1026]` from `sensor_data.npy`, else from data.pkl; None where there is no sensor."""
    separate = episode.folder / "sensor_data.npy"
    if separate.is_file():
        rows = array_file(separate)
        if rows.shape == (episode.num_rows, SENSOR_WIDTH):
            return rows
        if episode.sensor_data is None:
            raise MediaError(
                f"sensor_data.npy is {list(rows.shape)}; {[episode.num_rows, SENSOR_WIDTH]} belong to the actions"
            )
        logger.warning("%s: sensor_data.npy is %s; data.pkl's sensor is taken", episode.name, list(rows.shape))
    recorded = episode.sensor_data
    if recorded is None:
        return None
    try:
        if isinstance(recorded, dict):
            force, fpi = (np.asarray(recorded[name], np.float32) for name in ("force", "fpi"))
            recorded = np.concatenate([force.reshape(len(fpi), 1), fpi], axis=1)
        values = np.asarray(recorded, np.float32)
    except (KeyError, TypeError, ValueError) as exc:
        raise MediaError(f"data.pkl: sensor_data cannot be stacked: {exc!r}") from exc
    if values.ndim != 2 or values.shape[1] != SENSOR_WIDTH:
        raise MediaError(f"data.pkl: sensor_data must be [T, {SENSOR_WIDTH}]; found {list(values.shape)}")
    return HeldRows(values)
