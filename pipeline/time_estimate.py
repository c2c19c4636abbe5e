"""How long a build will take, from what a few units took and the lanes that it will have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_MOST_DECODERS = 16  # of one lane, unless more are asked for


@dataclass(frozen=True)
class LaneCount:
    """What a build has to work with."""

    lanes: int
    most_decoders: int  # of one lane
    is_gpu: bool
    cpus_per_lane: float


@dataclass(frozen=True)
class TimeEstimate:
    """How long all units take, without the start of Ray and of the model. Seconds."""

    decoders_per_lane: int
    wall_s: float
    device_s: float  # of all lanes together, busy or not: what a cluster counts
    device_busy: float  # share of it in which a device computes
    bound_by: Literal["decode", "encode"]


def lanes_of_one_host(*, lanes: int | None, decoders_per_lane: int | None, gpus: int, cpus: int) -> LaneCount:
    """The lanes that a build gets from one host alone, by the rule of `pipeline.lanes`."""
    count = lanes or max(1, gpus)
    return LaneCount(
        count, decoders_per_lane or most_decoders(count, is_gpu=gpus > 0, cpus=cpus), gpus > 0, cpus / count
    )


def most_decoders(lanes: int, *, is_gpu: bool, cpus: int) -> int:
    """How many decoders one of `lanes` lanes gets at most, where nobody says."""
    # On the CPU a decoder takes from the encoder beside it; a GPU is worth some crowding.
    return max(4 if is_gpu else 1, min(_MOST_DECODERS, cpus // lanes - 1))


def estimate_time(
    units: int, *, decode_s: float, encode_s: float, have: LaneCount, decoders_per_lane: int | None
) -> TimeEstimate:
    """Estimate a build of `units` units that take `decode_s` in one decoder and `encode_s` on one device each.

    A lane's decoders work beside its encoder, so that a unit costs its lane the slower of the two:

        unit_s   = max(encode_s, decode_s / decoders)
        wall_s   = ceil(units / lanes) * unit_s
        device_s = lanes * wall_s, of which units * encode_s are spent computing

    `decoders` is what was asked for, else as many as the encoder needs (decode_s / encode_s) up to the most that fit.
    An encoder on the CPU gives up to the decoders what they take of the lane's CPUs, and there
    unit_s = max(encode_s + decode_s / cpus_per_lane, decode_s / decoders).
    """
    needed = math.ceil(decode_s / encode_s) if encode_s else have.most_decoders
    decoders = decoders_per_lane or min(have.most_decoders, max(1, needed))
    busy_s = encode_s if have.is_gpu else encode_s + decode_s / max(1.0, have.cpus_per_lane)
    unit_s = max(busy_s, decode_s / decoders)
    wall_s = math.ceil(units / have.lanes) * unit_s
    device_s = have.lanes * wall_s
    return TimeEstimate(
        decoders_per_lane=decoders,
        wall_s=wall_s,
        device_s=device_s,
        device_busy=min(1.0, units * encode_s / device_s) if device_s else 0.0,
        bound_by="encode" if busy_s >= decode_s / decoders else "decode",
    )
