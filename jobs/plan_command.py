"""`vlm-cache plan`: what a build with the same options would do, told without building or storing anything."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow
import torch

from cache_store import Eviction, ReadOnlyStore
from jobs.build_request import asked_for, check_name, set_limits, task_of, tell_of_other_folders
from jobs.build_room import check_one_feature, check_whole, estimated
from jobs.plan_report import DiskRoom, PlanReport, StoreRoom
from jobs.plan_view import show
from jobs.printing import print_json
from jobs.sizes import format_size
from pipeline.errors import BuildRefused
from pipeline.probe import Probe, probe_units
from pipeline.size_estimate import SizeEstimate
from pipeline.time_estimate import LaneCount, TimeEstimate, estimate_time, lanes_of_one_host
from pipeline.work_plan import Plan, plan_build

# Opening so many videos to read their lengths takes a minute or less; more are opened only if the answer hangs on it.
_READ_LENGTHS_OF = 5000


def plan(args: argparse.Namespace) -> int:
    """Tell what the build would do; returns 0 if it would fit and nothing is impossible, else 1.

    Raises:
        BuildRefused, SourceError, EncoderError, CacheStoreError: as the build would.
    """
    # Gives memory back to the system where the default one keeps it for later, which there is not.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    source, spec, sampling = asked_for(args, is_apart=True)
    store = ReadOnlyStore(args.store)
    set_limits(args, store, remember=False)
    check_name(args, store)
    task = task_of(args, spec, store.location, sampling, run_id=None)
    made = plan_build(source, task, store, overwrite=args.overwrite)
    notes = tell_of_other_folders(args, spec, store, skipped=made.skipped)
    report = _reported(args, made, store, notes)
    if args.json:
        print_json(report.to_json())
    else:
        show(report)
    return report.exit_status


def _reported(args: argparse.Namespace, made: Plan, store: ReadOnlyStore, notes: list[str]) -> PlanReport:
    entries, stored_bytes = store.size()
    lanes = _lanes(args)
    probe = _probed(args, made, lanes)
    pinned_bytes = store.pinned_bytes(besides=made.wanted()) if made.todo else 0
    # What a service behind a URL has room for, nobody tells.
    free_bytes = shutil.disk_usage(_existing(store.root)).free if isinstance(args.store, Path) else None
    size = _size(made, store, pinned_bytes, math.inf if free_bytes is None else free_bytes)
    # The estimate leaves out most of what a file holds beside its feature.
    new_bytes = max(size.new_bytes, round((probe.bytes or 0) * made.todo))
    eviction = _eviction(args, made, new_bytes, store)
    limit_reason = _limit_reason(args, made, size, eviction, store.limit_bytes, pinned_bytes)
    own_bytes = eviction.missing_bytes if args.allow_eviction else 0
    needed_bytes = max(0, new_bytes - eviction.replaced_bytes - eviction.bytes - own_bytes)
    disk = None if free_bytes is None else DiskRoom(free_bytes, needed_bytes, needed_bytes <= free_bytes)
    reasons = [] if limit_reason is None else [limit_reason]
    reasons += [] if disk is None or disk.fits else [_disk_reason(disk, size, store.root)]
    reasons += [f"impossible: {len(made.problems):,} of {len(made.decisions):,} samples"] if made.problems else []
    return PlanReport(
        todo=made.todo,
        skipped=made.skipped,
        impossible=made.problems,
        size=size,
        probe=probe,
        lanes=lanes,
        time=_time(args, made, probe, lanes),
        store=StoreRoom(entries, stored_bytes, store.limit_bytes, pinned_bytes, limit_reason is None),
        disk=disk,
        eviction=eviction,
        own_bytes_evicted=own_bytes,
        ignored=[(str(file.path), file.reason) for file in made.source.ignored()],
        reasons=reasons,
        notes=notes,
    )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size(made: Plan, store: ReadOnlyStore, pinned_bytes: int, free_bytes: float) -> SizeEstimate:
    """Return what the features take, by each video's own length where those are few, or where it decides."""
    if made.todo <= _READ_LENGTHS_OF:
        return estimated(made, store, -1)
    room_bytes = free_bytes if store.limit_bytes is None else min(free_bytes, store.limit_bytes - pinned_bytes)
    return estimated(made, store, room_bytes)


def _eviction(args: argparse.Namespace, made: Plan, new_bytes: int, store: ReadOnlyStore) -> Eviction:
    if not made.todo:
        return Eviction(0, 0, {}, 0, 0)
    # What a build allows to be evicted it does not protect, unless it writes it anew.
    keeping = () if args.allow_eviction and not args.overwrite else made.wanted()
    return store.eviction_for(new_bytes, new_features=made.todo, keeping=keeping, is_replacing=args.overwrite)


def _limit_reason(
    args: argparse.Namespace,
    made: Plan,
    size: SizeEstimate,
    eviction: Eviction,
    limit_bytes: int | None,
    pinned_bytes: int,
) -> str | None:
    """Return the words in which the build would be refused, or what would end it later."""
    if limit_bytes is None:
        return None
    try:
        check_one_feature(made.task, limit_bytes, pinned_bytes)
        if not args.allow_eviction:
            check_whole(made, size, limit_bytes, pinned_bytes)
    except BuildRefused as exc:
        return str(exc)
    if not eviction.missing_bytes or args.allow_eviction:
        return None
    return (
        f"{format_size(eviction.missing_bytes)} more than the store's limit of {format_size(limit_bytes)} leaves: the "
        "rest is pinned, being read, of builds that are at work, or this build's own; raise --limit"
    )


def _disk_reason(disk: DiskRoom, size: SizeEstimate, root: Path) -> str:
    up_to = "up to " if size.is_upper_bound else ""
    return (
        f"the new features take {up_to}{format_size(disk.needed_bytes)}, and the disk of {root} has "
        f"{format_size(disk.free_bytes)} left"
    )


def _lanes(args: argparse.Namespace) -> LaneCount:
    """Return the lanes of the cluster that was named, else those that this host alone gives."""
    if args.address or os.environ.get("RAY_ADDRESS"):
        # Late: Ray takes a second to import, for which a plan that is refused need not wait.
        from pipeline.lanes.cluster import connection, shape_lanes

        with redirect_stdout(sys.stderr), connection(args.address):
            shape = shape_lanes(lanes=args.lanes, decoders_per_lane=args.decoders_per_lane, device=args.device)
        return LaneCount(shape.lanes, shape.most_decoders, shape.gpus_per_encoder > 0, shape.cpu_threads)
    gpus = 0 if args.device == "cpu" else torch.cuda.device_count()
    if args.device == "gpu":
        gpus = max(gpus, args.lanes or 1)
    return lanes_of_one_host(
        lanes=args.lanes, decoders_per_lane=args.decoders_per_lane, gpus=gpus, cpus=_cpus_of_this_host()
    )


def _cpus_of_this_host() -> int:
    """Return how many CPUs Ray counts where a build starts it: in a container with a quota, fewer than the host has."""
    try:
        # Ray has no public function for it, and counts by a rule of its own: by quota and not by affinity.
        from ray._private.utils import get_num_cpus

        return int(get_num_cpus(override_docker_cpu_warning=True))
    except (ImportError, AttributeError, TypeError):  # a Ray that keeps it elsewhere
        return os.cpu_count() or 1


def _probed(args: argparse.Namespace, made: Plan, lanes: LaneCount) -> Probe:
    device = "cuda:0" if lanes.is_gpu and torch.cuda.is_available() else "cpu"
    if not args.probe or not made.todo:
        return Probe(device, [], [])
    cpu_threads = max(1, int(lanes.cpus_per_lane))
    return probe_units(made, count=args.probe, device=device, cpu_threads=cpu_threads, limit_s=args.unit_timeout)


def _time(args: argparse.Namespace, made: Plan, probe: Probe, lanes: LaneCount) -> TimeEstimate | None:
    if probe.decode_s is None or probe.encode_s is None:
        return None
    return estimate_time(
        made.todo,
        decode_s=probe.decode_s,
        encode_s=probe.encode_s,
        have=lanes,
        decoders_per_lane=args.decoders_per_lane,
    )
