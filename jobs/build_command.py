"""`vlm-cache build`: check everything that can be checked, then run the plan on Ray and report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cache_store import CacheStoreError, FeatureStore, StepKey, canonical_dataset_name
from jobs.build_views import BuildView, print_report
from jobs.sizes import format_size
from pipeline.encoders import EncoderSpec, StepEncoderSpec, load_spec
from pipeline.encoders.base import VideoEncoderSpec
from pipeline.errors import BuildRefused
from pipeline.lanes import BuildReport, TimeLimits, run_build
from pipeline.size_estimate import by_length, upper_bound
from pipeline.sources import Source, open_source
from pipeline.vision import PartialFrames, SamplingRule
from pipeline.work_plan import BuildTask, Plan, plan_build

VIDEO_SOURCES = ("folder", "video-mme")
VIDEO_ENCODERS = ("longva", "huggingface")


def build(args: argparse.Namespace) -> int:
    """Build a cache; returns 0 if every sample has its feature, 1 if some failed or were not started."""
    _check_arguments(args)
    sampling = _sampling(args.sampling)
    source = _open_source(args)
    print(f"reading the weights of {args.model} ...", file=sys.stderr)
    spec = _load_spec(args)
    # Without a run's id nothing protects what the build writes: it may evict its own features.
    run_id = None if args.allow_eviction else uuid.uuid4().hex
    with _open_store(args, run_id) as store:
        _check_one_feature(args, spec, store)
        if args.dataset is not None:
            store.path_of(StepKey(args.dataset, 0))  # refuses a name that cannot be part of a file's
        partial_frames: PartialFrames = "allow" if args.allow_partial else "refuse"
        task = BuildTask(spec, str(store.root), run_id, args.nframe, sampling, partial_frames)
        plan = plan_build(source, task, store, overwrite=args.overwrite)
        if store.limit_bytes is not None and not args.allow_eviction:
            _check_whole(plan, store, store.limit_bytes)
        store.remember_plan(f"{args.source} {os.path.abspath(args.data)} {args.encoder}", plan.wanted())
        with _stop_on_signal() as should_stop, BuildView(title=_title(args)) as view:
            report = run_build(
                plan,
                store,
                address=args.address,
                lanes=args.lanes,
                decoders_per_lane=args.decoders_per_lane,
                device=args.device,
                limits=TimeLimits(decode_s=args.unit_timeout),
                on_progress=view.show,
                should_stop=should_stop,
            )
    if args.report:
        _write_report(args.report, report)
    if args.json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        print_report(report)
    return report.exit_status


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse pairs that cannot work and options that the chosen source would silently ignore."""
    is_video = args.source in VIDEO_SOURCES
    if is_video != (args.encoder in VIDEO_ENCODERS):
        fits = "longva or huggingface" if is_video else "qwen2_5_vl"
        raise BuildRefused(f"--encoder {args.encoder} cannot encode --source {args.source}; that takes {fits}")
    given = {
        "--annotations": args.annotations is not None and args.source != "video-mme",
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
        dataset = Path(os.path.abspath(args.data)).name
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


def _open_store(args: argparse.Namespace, run_id: str | None) -> FeatureStore:
    try:
        return FeatureStore(args.store, limit_bytes=args.limit, soft_limit_bytes=args.soft_limit, run_id=run_id)
    except ValueError as exc:
        if isinstance(exc, CacheStoreError):
            raise
        raise BuildRefused(f"--soft-limit: {exc}") from exc


def _check_one_feature(args: argparse.Namespace, spec: EncoderSpec, store: FeatureStore) -> None:
    """Refuse a limit that no feature at all fits under: every unit would fail."""
    if store.limit_bytes is None:
        return
    if args.encoder in VIDEO_ENCODERS:
        video_spec: VideoEncoderSpec = spec  # type: ignore[assignment]
        # The shortest video has one frame.
        feature_bytes, what = video_spec.feature_bytes(1), "one frame's feature"
    else:
        step_spec: StepEncoderSpec = spec  # type: ignore[assignment]
        feature_bytes, what = step_spec.feature_bytes(), "one feature"
    if feature_bytes > store.limit_bytes:
        raise BuildRefused(
            f"the store's limit of {format_size(store.limit_bytes)} is below {what} ({format_size(feature_bytes)}); "
            "raise --limit"
        )


def _check_whole(plan: Plan, store: FeatureStore, limit_bytes: int) -> None:
    """Refuse a build that would evict its own features before anybody read them.

    Only what is sure is refused: where `--nframe` allows more than the limit holds, the videos' headers tell how many
    frames there really are; videos that do not tell count in full, and the message says so.
    """
    needed = upper_bound(plan)
    if needed.bytes > limit_bytes and needed.is_upper_bound:
        print("reading the lengths of the videos, because the limit may be too small for them ...", file=sys.stderr)
        needed = by_length(plan, store)
    if needed.bytes <= limit_bytes:
        return
    up_to = "up to " if needed.is_upper_bound else ""
    raise BuildRefused(
        f"this build takes {up_to}{format_size(needed.bytes)} ({needed.features:,} features, {plan.skipped:,} of them "
        f"already stored), and the store's limit is {format_size(limit_bytes)}; raise --limit, build less at a time, "
        "or pass --allow-eviction, which keeps what was built or read last"
    )


def _title(args: argparse.Namespace) -> str:
    return f"{args.source} {args.data.name} with {args.encoder} {args.model} into {args.store}"


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


def _write_report(folder: Path, report: BuildReport) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = report.to_json()
        (folder / "report.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        lines = [json.dumps(failure, ensure_ascii=False) + "\n" for failure in whole["failed"]]
        (folder / "failed.jsonl").write_text("".join(lines))
    except OSError as exc:
        # The features are what hours were spent on; a report that cannot be written must not hide them.
        print(f"the report could not be written to {folder}: {exc}", file=sys.stderr)
