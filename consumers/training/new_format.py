"""What a sample of a new-format episode holds: windows around its pose, and actions made of poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consumers.training.actions import action_window, pose_actions
from consumers.training.old_format import SENSOR_WIDTH
from consumers.training.robot_states import require_finite, require_finite_rows, robot_states, zero_padded
from pipeline.errors import MediaError
from pipeline.sources.array_files import StoredArray, array_in
from pipeline.sources.new_episode import NewEpisode


class NewFormatData:
    """Windows of an episode's arrays, float32, by sample. Raises `MediaError` where a file or a shape is wrong."""

    def __init__(self, episode: NewEpisode, *, has_sensor: bool) -> None:
        self.episode = episode
        robot = robot_states(episode.folder)
        if robot is None:
            raise MediaError("neither robot_states.npz nor robot_states.csv, of which the actions are made")
        self._robot = robot.states
        self._actions = pose_actions(robot.poses, interval=episode.interval, num_actions=episode.num_samples())
        self._sensor = _sensor(episode) if has_sensor else None

    @property
    def kept_bytes(self) -> int:
        """How much memory the arrays take."""
        sensor = 0 if self._sensor is None else self._sensor.kept_bytes
        return self._actions.nbytes + self._robot.kept_bytes + sensor

    def sensor_window(self, sample: int, size: int) -> np.ndarray:
        """Return `[size, 1026]`, force last, around the sample's moment; zeros behind a recording shorter than that.

        Windows that were preprocessed are as long as they were stored, if that is more.
        """
        if self._sensor is None:
            return np.zeros((size, SENSOR_WIDTH), np.float32)
        window = self._sensor.window(sample, self._centre(sample), size)
        return require_finite(window, f"{self.episode.name}: the sensor")

    def robot_window(self, sample: int, size: int) -> np.ndarray:
        """Return `[size, 12]`: rows from half a window before the sample's pose on, then zeros."""
        span = self._robot_span(sample, size)
        rows = zero_padded(self._robot.rows(span.start, span.stop), size)
        return require_finite(rows, f"{self.episode.name}: the robot's state")

    def actions(self, sample: int, horizon: int) -> np.ndarray:
        """Return `[horizon, 7]`: actions from the sample's own on; behind the end the last is repeated."""
        return require_finite(action_window(self._actions, sample, horizon), f"{self.episode.name}: a pose, so action")

    def require_finite_windows(self, samples: Sequence[int], *, sensor_size: int, robot_size: int) -> None:
        """Look at all windows of ascending samples, each row once; a size of 0 leaves its array closed."""
        name = self.episode.name
        if self._sensor is not None and sensor_size:
            spans = (self._sensor.span(sample, self._centre(sample), sensor_size) for sample in samples)
            require_finite_rows(self._sensor, spans, f"{name}: the sensor")
        if robot_size:
            spans = (self._robot_span(sample, robot_size) for sample in samples)
            require_finite_rows(self._robot, spans, f"{name}: the robot's state")

    def _centre(self, sample: int) -> int:
        """The sensor's row at a sample's moment."""
        return int(sample * self.episode.interval * self.episode.sensor_hz / self.episode.robot_hz)

    def _robot_span(self, sample: int, size: int) -> range:
        start = max(0, sample * self.episode.interval - size // 2)
        return range(start, start + size)

    def timestamp(self, vlm_idx: int) -> float | None:
        """Return the moment of a step, in the seconds of the image names; NaN where nothing tells when it began."""
        try:
            return self.episode.start_s + vlm_idx / self.episode.robot_hz
        except MediaError:
            return float("nan")


class _RawSensor:
    """A-lines `[N, 1025]` and forces `[N]` at the sensor's rate, with `[N]` timestamps if there are any."""

    def __init__(self, alines: StoredArray, forces: StoredArray, times: StoredArray | None) -> None:
        num_readings = alines.shape[0]
        if alines.shape != (num_readings, SENSOR_WIDTH - 1) or forces.shape not in ((num_readings,), (num_readings, 1)):
            raise MediaError(
                f"{alines.path.name}: alines are {list(alines.shape)} and forces {list(forces.shape)}; "
                f"[N, {SENSOR_WIDTH - 1}] and [N] belong together"
            )
        if times is not None and times.shape[0] != num_readings:
            raise MediaError(f"{alines.path.name}: {num_readings} alines and {times.shape[0]} timestamps; each has one")
        self._alines, self._forces = alines, forces

    @property
    def kept_bytes(self) -> int:
        return self._alines.kept_bytes + self._forces.kept_bytes

    def window(self, sample: int, centre: int, size: int) -> np.ndarray:
        span = self.span(sample, centre, size)
        return zero_padded(self.rows(span.start, span.stop), size)

    def span(self, sample: int, centre: int, size: int) -> range:
        end = min(max(0, centre - size // 2) + size, self._alines.shape[0])
        return range(max(0, end - size), end)

    def rows(self, start: int, stop: int) -> np.ndarray:
        alines, forces = self._alines.rows(start, stop), self._forces.rows(start, stop)
        return np.concatenate([alines, forces.reshape(len(alines), 1)], axis=1)


class _PreparedSensor:
    """Windows that were cut beforehand, `[samples, rows, 1026]`."""

    def __init__(self, windows: StoredArray, num_samples: int) -> None:
        if len(windows.shape) != 3 or windows.shape[2] != SENSOR_WIDTH or windows.shape[0] < num_samples:
            raise MediaError(
                f"{windows.path.name}: data is {list(windows.shape)}; one window [rows, {SENSOR_WIDTH}] belongs to "
                f"each of {num_samples} samples"
            )
        self._windows = windows

    @property
    def kept_bytes(self) -> int:
        return self._windows.kept_bytes

    def window(self, sample: int, centre: int, size: int) -> np.ndarray:
        rows = self._windows.rows(sample, sample + 1)[0]
        return zero_padded(rows, max(size, len(rows)))

    def span(self, sample: int, centre: int, size: int) -> range:
        return range(sample, sample + 1)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._windows.rows(start, stop)


def _sensor(episode: NewEpisode) -> _RawSensor | _PreparedSensor | None:
    paths = episode.sensor_files()
    found: dict[Path, _RawSensor | _PreparedSensor] = {}
    for path in paths:
        alines, forces, windows, times = (array_in(path, name) for name in ("alines", "forces", "data", "timestamps"))
        if alines is not None and forces is not None:
            found[path] = _RawSensor(alines, forces, times)
        elif windows is not None:
            found[path] = _PreparedSensor(windows, episode.num_samples())
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise MediaError(f"{names} each hold the sensor, and which samples are whose is not told; join them in one")
    if paths and not found:
        raise MediaError(f"{paths[0].name} has neither alines and forces nor data")
    return next(iter(found.values()), None)
