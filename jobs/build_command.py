"""`vlm-cache build`: check everything that can be checked, then run the plan on Ray and report."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cache_store import CacheStoreError, FeatureStore, StepKey, canonical_dataset_name
from jobs.build_views import BuildView, print_report
from jobs.failed_units import OnlyThese, check_recipes
from jobs.run_files import FailedRun
from jobs.run_folder import RunFolder
from jobs.sizes import format_size
from pipeline.encoders import EncoderSpec, StepEncoderSpec, load_spec
from pipeline.encoders.base import VideoEncoderSpec
from pipeline.errors import BuildRefused
from pipeline.lanes import TimeLimits, run_build
from pipeline.size_estimate import by_length, upper_bound
from pipeline.sources import (
    BENCHMARKS,
    VIDEO_SOURCES,
    Benchmark,
    Source,
    absolute,
    data_set_name,
    open_source,
)
from pipeline.vision import PartialFrames, SamplingRule
from pipeline.work_plan import BuildTask, Plan, plan_build

VIDEO_ENCODERS = ("longva", "huggingface")


def build(args: argparse.Namespace, *, only: FailedRun | None = None) -> int:
    """Build a cache; returns 0 if every sample has its feature, 1 if some failed or were not started.

    With `only`, the failed units of an earlier run of the same arguments and nothing else.
    """
    _check_arguments(args)
    sampling = _sampling(args.sampling)
    source = _open_source(args)
    if only is not None:
        source = OnlyThese(source, frozenset(only.recipes))
    print(f"reading the weights of {args.model} ...", file=sys.stderr)
    spec = _load_spec(args)
    # Without a run's id nothing protects what the build writes: it may evict its own features.
    run = uuid.uuid4().hex
    run_id = None if args.allow_eviction else run
    with FeatureStore(args.store, run_id=run_id) as store:
        _set_limits(args, store, remember=False)
        if store.limit_bytes is not None:
            _check_one_feature(args, spec, store.limit_bytes)
        if args.dataset is not None:
            store.path_of(StepKey(args.dataset, 0))  # refuses a name that cannot be part of a file's
        partial_frames: PartialFrames = "allow" if args.allow_partial else "refuse"
        task = BuildTask(
            spec, str(store.root), run_id, args.nframe, sampling, partial_frames, fetch_limit_bytes=args.fetch_limit
        )
        if only is not None:
            check_recipes(only, source, task)
        plan = _checked_plan(args, source, task, store)
        if only is None:
            store.remember_plan(f"{args.source} {absolute(args.data)} {args.encoder}", plan.wanted())
        folder = RunFolder.asked_for(args.report) if args.report else RunFolder.in_store(store.root, run)
        events = folder.begin(args, task.shared_recipe())
        if isinstance(source, Benchmark):
            folder.write_questions(source.questions())
        with _stop_on_signal() as should_stop, BuildView(title=_title(args)) as view:
            report = run_build(
                plan,
                store,
                address=args.address,
                lanes=args.lanes,
                decoders_per_lane=args.decoders_per_lane,
                device=args.device,
                limits=TimeLimits(args.unit_timeout, args.encode_timeout, args.write_timeout),
                on_failure=folder.note,
                on_progress=view.show,
                should_stop=should_stop,
                events=events,
                dataset=args.dataset or data_set_name(args.data),
            )
        folder.end(report)
    if args.json:
        print(json.dumps({**report.to_json(), "folder": str(folder.folder)}, ensure_ascii=False))
    else:
        print_report(report, folder.folder)
    return report.exit_status


def _checked_plan(args: argparse.Namespace, source: Source, task: BuildTask, store: FeatureStore) -> Plan:
    plan = plan_build(source, task, store, overwrite=args.overwrite)
    if store.limit_bytes is not None:
        _check_room(args, plan, store, store.limit_bytes)
    _set_limits(args, store, remember=True)  # a refused build leaves the store as it was
    return plan


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse pairs that cannot work and options that the chosen source would silently ignore."""
    is_video = args.source in VIDEO_SOURCES
    if is_video != (args.encoder in VIDEO_ENCODERS):
        fits = "longva or huggingface" if is_video else "qwen2_5_vl"
        raise BuildRefused(f"--encoder {args.encoder} cannot encode --source {args.source}; that takes {fits}")
    given = {
        "--annotations": args.annotations is not None and args.source not in BENCHMARKS,
        "--dataset": args.dataset is not None and args.source == "vla",
        "--instruction": args.instruction is not None and is_video,
        "--allow-partial": args.allow_partial and not is_video,
        "--views": args.views is not None and is_video,
        "--frames-per-forward": args.frames_per_forward is not None and not is_video,
    }
    useless = [flag for flag, is_useless in given.items() if is_useless]
    if useless:
        raise BuildRefused(f"{', '.join(useless)} means nothing for --source {args.source}; leave it out")


def _sampling(text: str) -> SamplingRule:
    try:
        return SamplingRule.parse(text)
    except ValueError as exc:
        raise BuildRefused(f"--sampling: {exc}") from exc


def _open_source(args: argparse.Namespace) -> Source:
    dataset = args.dataset
    if dataset is None and args.source == "folder":
        dataset = data_set_name(args.data)
    return open_source(
        args.source,
        args.data,
        annotations=args.annotations,
        dataset=canonical_dataset_name(dataset) if dataset is not None else None,
        instruction=args.instruction,
        views=args.views.split(",") if args.views else None,
        vlm_reuse_count=args.vlm_reuse_count,
        action_expert_hz=args.action_expert_hz,
        horizon=args.horizon,
    )


def _load_spec(args: argparse.Namespace) -> EncoderSpec:
    return load_spec(
        args.encoder,
        args.model,
        dtype=args.dtype,
        frames_per_forward=args.frames_per_forward,
        revision=args.revision,
    )


def _set_limits(args: argparse.Namespace, store: FeatureStore, *, remember: bool) -> None:
    if args.limit is None and args.soft_limit is None:
        return
    try:
        store.set_limit(args.limit, soft_limit_bytes=args.soft_limit, remember=remember)
    except ValueError as exc:
        if isinstance(exc, CacheStoreError):
            raise
        raise BuildRefused(f"--soft-limit: {exc}") from exc


def _check_one_feature(args: argparse.Namespace, spec: EncoderSpec, limit_bytes: int, pinned_bytes: int = 0) -> None:
    """Refuse a limit that no feature at all fits under, beside what is pinned: every unit would fail."""
    if args.encoder in VIDEO_ENCODERS:
        video_spec: VideoEncoderSpec = spec  # type: ignore[assignment]
        # The shortest video has one frame.
        feature_bytes, what = video_spec.feature_bytes(1), "one frame's feature"
    else:
        step_spec: StepEncoderSpec = spec  # type: ignore[assignment]
        feature_bytes, what = step_spec.feature_bytes(), "one feature"
    if feature_bytes > limit_bytes - pinned_bytes:
        raise BuildRefused(
            f"{what} takes {format_size(feature_bytes)}, and the store's limit is "
            f"{_shown_limit(limit_bytes, pinned_bytes)}; raise --limit"
        )


def _check_room(args: argparse.Namespace, plan: Plan, store: FeatureStore, limit_bytes: int) -> None:
    """Refuse what does not fit under the limit beside other features that are pinned: nobody may evict those."""
    pinned_bytes = store.pinned_bytes(besides=plan.wanted()) if plan.todo else 0
    if not args.allow_eviction:
        _check_whole(plan, store, limit_bytes, pinned_bytes)
    elif pinned_bytes:
        _check_one_feature(args, plan.task.spec, limit_bytes, pinned_bytes)


def _shown_limit(limit_bytes: int, pinned_bytes: int) -> str:
    if not pinned_bytes:
        return format_size(limit_bytes)
    return (
        f"{format_size(limit_bytes)}, of which other features that are pinned or being read take "
        f"{format_size(pinned_bytes)} (vlm-cache pin --list, --remove) and leave "
        f"{format_size(max(0, limit_bytes - pinned_bytes))}"
    )


def _check_whole(plan: Plan, store: FeatureStore, limit_bytes: int, pinned_bytes: int) -> None:
    """Refuse a build that would evict its own features before anybody read them.

    Only what is sure is refused: where `--nframe` allows more than the limit holds, the videos' headers tell how many
    frames there really are; videos that do not tell count in full, and the message says so.
    """
    room_bytes = limit_bytes - pinned_bytes
    needed = upper_bound(plan)
    if needed.bytes > room_bytes and needed.is_upper_bound:
        print("reading the lengths of the videos, because the limit may be too small for them ...", file=sys.stderr)
        needed = by_length(plan, store)
    if needed.bytes <= room_bytes:
        return
    up_to = "up to " if needed.is_upper_bound else ""
    raise BuildRefused(
        f"this build takes {up_to}{format_size(needed.bytes)} ({needed.features:,} features, {plan.skipped:,} of them "
        f"already stored), and the store's limit is {_shown_limit(limit_bytes, pinned_bytes)}; raise --limit, build "
        "less at a time, or pass --allow-eviction, which keeps what was built or read last"
    )


def _title(args: argparse.Namespace) -> str:
    return f"{args.source} {data_set_name(args.data)} with {args.encoder} {args.model} into {args.store}"


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], str | None]]:
    """Yield a function that gives the reason to stop once SIGINT or SIGTERM came; a second one interrupts at once."""
    reasons: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if reasons:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        reasons.append(f"stopped by {name}")
        print(f"{name}: finishing the units in flight; once more ends at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: reasons[0] if reasons else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
