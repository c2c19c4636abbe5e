"""From robot poses to the actions of the new episode format: how far the robot moves and turns within one action."""

from __future__ import annotations

import numpy as np

STOP_ROWS = 5  # at the end of an episode the robot is to stand still for so many actions


def pose_actions(poses: np.ndarray, *, interval: int, num_actions: int) -> np.ndarray:
    """Return the actions of an episode, float32 `[num_actions, 7]`.

    Action k leads from pose `k * interval` to pose `(k + 1) * interval`: the difference of the positions (in the unit
    of the poses), the rotation vector (radians) of `R_end * R_start^-1`, and 1.0. The last `STOP_ROWS` actions are six
    zeros and 1.0. `poses` is `[at least num_actions * interval + 1, 6]`: x, y, z, and Euler angles in degrees about the
    fixed axes x, y, z, in this order. Source: the new-format VLA loader.
    """
    actions = np.zeros((num_actions, 7), np.float32)
    actions[:, 6] = 1.0
    moving = max(0, num_actions - STOP_ROWS)
    if moving:
        ends = poses[: moving * interval + 1 : interval].astype(np.float32)
        actions[:moving, :3] = ends[1:, :3] - ends[:-1, :3]
        turns = _quaternions(ends[:, 3:].astype(np.float64))
        actions[:moving, 3:6] = _rotation_vectors(_times(turns[1:], turns[:-1] * [1.0, -1.0, -1.0, -1.0]))
    return actions


def recorded_actions(actions: np.ndarray) -> np.ndarray:
    """Return the actions of an old-format episode, float32 `[T, 7]`: as recorded, the last ones standing still.

    The first six values of the last `STOP_ROWS` rows are zero. Source: the old-format VLA loader.
    """
    made = np.array(actions, np.float32)
    made[max(0, len(made) - STOP_ROWS) :, :6] = 0.0
    return made


def action_window(actions: np.ndarray, start: int, horizon: int) -> np.ndarray:
    """Return rows `start` to `start + horizon`; behind the end the last row is repeated. There must be one row."""
    return actions[np.minimum(np.arange(start, start + horizon), len(actions) - 1)]


def _quaternions(degrees: np.ndarray) -> np.ndarray:
    """Return unit quaternions (w, x, y, z) `[N, 4]` of Euler angles `[N, 3]` about the fixed axes x, then y, then z."""
    halves = np.deg2rad(degrees) / 2
    about_axis = np.zeros((3, len(degrees), 4))
    for axis in range(3):
        about_axis[axis, :, 0] = np.cos(halves[:, axis])
        about_axis[axis, :, 1 + axis] = np.sin(halves[:, axis])
    # What is done first stands rightmost.
    return _times(about_axis[2], _times(about_axis[1], about_axis[0]))


def _times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Hamilton products of quaternions `[N, 4]`."""
    w, x, y, z = left.T
    a, b, c, d = right.T
    parts = (
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    )
    return np.stack(parts, axis=1)


def _rotation_vectors(quaternions: np.ndarray) -> np.ndarray:
    """Return rotation vectors `[N, 3]` in radians, of at most half a turn, of unit quaternions."""
    # A quaternion and its negative are one rotation; the one with w >= 0 turns by at most pi.
    upright = np.where(quaternions[:, :1] < 0, -quaternions, quaternions)
    sines = np.linalg.norm(upright[:, 1:], axis=1)
    angles = 2 * np.arctan2(sines, upright[:, 0])
    # Where the angle vanishes, angle / sin(angle / 2) tends to 2.
    scales = np.where(sines > 0, angles / np.where(sines > 0, sines, 1.0), 2.0)
    vectors: np.ndarray = upright[:, 1:] * scales[:, None]
    return vectors
