"""What both episode formats have beside images: robot states in an archive or a table, and windows of rows."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.errors import MediaError
from pipeline.sources.array_files import array_in

JOINTS, POSE = tuple(f"joint_{n}" for n in range(1, 7)), tuple(f"pose_{axis}" for axis in "xyzabr")
STATE_WIDTH = len(JOINTS) + len(POSE)


class RowsOfWindows(Protocol):
    """What windows are cut out of."""

    @property
    def kept_bytes(self) -> int: ...

    def rows(self, start: int, stop: int) -> np.ndarray: ...


class Rows(RowsOfWindows, Protocol):
    """An array by rows, wherever they lie."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class HeldRows:
    """An array that is in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.shape, self.kept_bytes = values, values.shape, values.nbytes

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._values[max(0, start) : max(0, stop)]


@dataclass(frozen=True, eq=False)
class RobotStates:
    """States `[T, 12]` (six joints, then the pose) and poses `[T, 6]`."""

    states: Rows
    poses: np.ndarray


def robot_states(folder: Path) -> RobotStates | None:
    """Return the robot states of an episode's folder, None where there are none.

    Raises:
        MediaError: they cannot be read, or are of another shape.
    """
    archive, table = folder / "robot_states.npz", folder / "robot_states.csv"
    if archive.is_file():
        states: Rows | None = array_in(archive, "robot_states")
        own_poses = array_in(archive, "poses")
    elif table.is_file():
        states, own_poses = HeldRows(_table(table)), None
    else:
        return None
    if states is None or len(states.shape) != 2 or states.shape[1] != STATE_WIDTH:
        found = "nothing" if states is None else list(states.shape)
        raise MediaError(f"{archive.name}: robot_states must be [T, {STATE_WIDTH}]; found {found}")
    num_poses = states.shape[0]
    if own_poses is None:
        return RobotStates(states, states.rows(0, num_poses)[:, len(JOINTS) :])
    if own_poses.shape != (num_poses, len(POSE)):
        raise MediaError(f"{archive.name}: poses are {list(own_poses.shape)} beside {num_poses} robot states")
    return RobotStates(states, own_poses.rows(0, num_poses))


def _table(path: Path) -> np.ndarray:
    try:
        with path.open(newline="") as file:
            rows = [[float(row[name]) for name in (*JOINTS, *POSE)] for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as exc:
        raise MediaError(f"{path.name} cannot be read: {exc!r}") from exc
    return np.array(rows, np.float32).reshape(len(rows), STATE_WIDTH)


def zero_padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Return float32 rows `[size, ...]`: `rows`, then zeros."""
    window = np.zeros((size, *rows.shape[1:]), np.float32)
    window[: len(rows)] = rows
    return window


def require_finite(values: np.ndarray, what: str) -> np.ndarray:
    """Return the values.

    Raises:
        MediaError: one of them is NaN or infinite, which would spread over all weights within one step.
    """
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise MediaError(f"{what} has NaN or infinity in row {row} of its window; repair or remove the episode")
    return values


def require_finite_rows(rows: RowsOfWindows, spans: Iterable[range], what: str) -> None:
    """Read the rows of ascending spans, each row once, one span at a time.

    Raises:
        MediaError: one of them is NaN or infinite as float32, or cannot be read.
    """
    done = 0
    for span in spans:
        start = max(span.start, done)
        is_finite = np.isfinite(rows.rows(start, span.stop).astype(np.float32, copy=False))
        if not is_finite.all():
            row = start + int(np.argwhere(~is_finite)[0, 0])
            raise MediaError(f"{what} has NaN or infinity in row {row}; repair or remove the episode")
        done = max(done, span.stop)
