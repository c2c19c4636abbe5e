"""Ray itself: join or start a cluster, and cut its GPUs and CPUs into lanes."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import BuildRefused
from pipeline.lanes.decoder_process import DecoderProcess
from pipeline.lanes.limits import TimeLimits
from pipeline.time_estimate import most_decoders
from pipeline.work_plan import BuildTask

# One call writes, one is on the device, one waits with its pixels already local.
ENCODER_DEPTH = 3
# While they are few bytes, so that one flush publishes many; each occupies a thread of the encoder's process.
ENCODER_DEPTH_SMALL = 32
# One call runs, one waits, so that a decoder never idles for the driver's round trip.
DECODER_DEPTH = 2
DECODER_DEPTH_SMALL = 8  # of units that take less time to decode than a call takes to come back
CONNECT_S = 10.0
LATE_S = 60.0  # Ray and its processes come up within seconds; what keeps it may wait in native code, deaf to Ctrl-C

logger = logging.getLogger("pipeline.lanes")


def _say_nothing_to_ray() -> None:
    """Keep a forked process, such as a worker of a DataLoader, off its parent's connection to Ray.

    What it sends there takes the number of the parent's next call, whose answer then never comes. Ray's `excepthook`
    reports there what a thread dies of, and handles of actors that the parent left to its garbage collector take leave.
    """
    if getattr(sys.excepthook, "__module__", None) == "ray._private.worker":
        sys.excepthook = sys.__excepthook__
    gc.freeze()


os.register_at_fork(after_in_child=_say_nothing_to_ray)


@contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or at $RAY_ADDRESS (set inside `ray job submit`); else start Ray on this machine.

    A cluster that was started here is stopped at the end; a connection that was open before is left open.

    Raises:
        BuildRefused: no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    joining = address or os.environ.get("RAY_ADDRESS")
    if joining:
        _require_listener(joining)
    # Ray takes SIGTERM for itself, and would end the build where the caller's own handler drains it.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _told_if_late("come up"):
            if joining:
                ray.init(address=joining, **options)
            else:
                # "local", or else Ray would look for a cluster of some other user of this machine.
                ray.init(address="local", include_dashboard=False, **options)
    except Exception as exc:  # what Ray raises has no class of its own: a disk that is full, a node too slow
        # Ray tells of a missing token in its log lines only, and `ray start` asks for one wherever its user has one.
        asks = "; if it asks for a token, set RAY_AUTH_MODE=token" if _joins_without_token(joining) else ""
        raise BuildRefused(f"no Ray cluster to use at {joining or 'this machine'}: {exc}{asks}") from exc
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def _joins_without_token(address: str | None) -> bool:
    return address is not None and os.environ.get("RAY_AUTH_MODE") != "token"


@contextmanager
def _told_if_late(what: str) -> Iterator[None]:
    words = "Ray has not %s for %g s and is waited for; its logs: session_latest/logs in RAY_TMPDIR or /tmp/ray"
    timer = threading.Timer(LATE_S, logger.warning, (words, what, LATE_S))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _require_listener(address: str) -> None:
    """Refuse an address where nobody listens: `ray.init` would wait there for minutes without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto" and the like: Ray finds the address itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as exc:
        raise BuildRefused(f"no Ray cluster answers at {address}: {exc}") from exc


@dataclass(frozen=True)
class LaneShape:
    """What each lane of a build asks of the cluster."""

    lanes: int
    decoders_per_lane: int  # at the start
    most_decoders: int  # of one lane, if its encoder starves
    gpus_per_encoder: int  # 0 or 1
    cpus_per_process: float  # what Ray reserves for each process; below 1 where lanes outnumber the CPUs
    cpu_threads: int  # torch threads of an encoder on the CPU
    lane_bytes: int  # limit of the decoded bytes in flight of one lane


def shape_lanes(
    *,
    lanes: int | None,
    decoders_per_lane: int | None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
) -> LaneShape:
    """Fit lanes to the cluster: one per GPU where there are any (or one on the CPU), decoders beside each.

    Raises:
        BuildRefused: `device="gpu"` on a cluster that shows no GPU, without a number of lanes to wait for.
    """
    with _told_if_late("answered"):
        resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0.0)
    if device == "gpu" and not gpus and lanes is None:
        raise BuildRefused("the cluster has no GPU now; pass --lanes to wait for an autoscaler, or --device cpu")
    on_gpu = device == "gpu" or (device == "auto" and gpus > 0)
    count = lanes or (gpus if on_gpu else 1)
    most = decoders_per_lane or most_decoders(count, is_gpu=on_gpu, cpus=int(cpus))
    # Where lanes outnumber the CPUs they share them, or the last ones would wait for ever. A cluster without any
    # CPU has an autoscaler to ask. Hundredths, because they read well in `ray status`.
    share = math.floor(100 * min(1.0, cpus / (count * (most + 1)))) / 100 if cpus else 1.0
    objects = resources.get("object_store_memory", 2 * 2**30)
    return LaneShape(
        lanes=count,
        decoders_per_lane=decoders_per_lane or 1,
        most_decoders=most,
        gpus_per_encoder=1 if on_gpu else 0,
        cpus_per_process=max(share, 0.01),
        cpu_threads=max(1, int(cpus) // count),
        lane_bytes=int(objects * 0.5 / count),
    )


def start_encoder(task: BuildTask, shape: LaneShape, limits: TimeLimits, *, replaces: bool) -> Any:
    """Start one encoder process; Ray restarts it wherever it dies, and never repeats a call by itself."""
    from pipeline.lanes.encoder_process import EncoderProcess  # not above: decoders import this module, and no torch

    return (
        ray.remote(EncoderProcess)
        .options(
            num_gpus=shape.gpus_per_encoder,
            num_cpus=shape.cpus_per_process,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=ENCODER_DEPTH_SMALL + 1,  # one more for ready() and close()
        )
        .remote(task, shape.cpu_threads, limits, replaces=replaces)
    )


def start_decoder(task: BuildTask, shape: LaneShape, *, near_node: str, recheck: bool) -> Any:
    """Start one decoder process, on the encoder's node if there is room now, else anywhere: it needs no GPU."""
    near = NodeAffinitySchedulingStrategy(near_node, soft=True, _spill_on_unavailable=True)
    return (
        ray.remote(DecoderProcess)
        .options(num_cpus=shape.cpus_per_process, max_restarts=-1, max_task_retries=0, scheduling_strategy=near)
        .remote(task.for_decoders(), recheck)
    )


def free_places() -> str:
    """What the cluster has free now, in words."""
    free = ray.available_resources()
    return f"{free.get('CPU', 0.0):g} CPU, {free.get('GPU', 0.0):g} GPU"


def is_gone(node_id: str) -> bool:
    """Whether the cluster has lost the node: what ran there was preempted, and is not to blame."""
    return not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)
