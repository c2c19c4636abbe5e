"""From the arguments of `build` and `plan` to the source, the encoder and the store's limits that they mean."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from cache_store import CacheStoreError, FeatureStore, Lookup, ReadOnlyStore, StepKey, canonical_dataset_name, plans
from jobs.arguments import BUILD_DEFAULTS
from pipeline.encoders import EncoderSpec, load_spec
from pipeline.encoders.base import VideoEncoderSpec
from pipeline.errors import BuildRefused
from pipeline.sources import (
    BENCHMARKS,
    STEP_SOURCES,
    VIDEO_SOURCES,
    Source,
    StepBatches,
    absolute,
    data_set_name,
    open_source,
)
from pipeline.vision import PartialFrames, SamplingRule
from pipeline.work_plan import BuildTask

VIDEO_ENCODERS = ("longva", "huggingface")


def asked_for(
    args: argparse.Namespace, *, is_apart: bool = False, is_again: bool = False
) -> tuple[Source, EncoderSpec, SamplingRule]:
    """Open the source and read the model's weights for their digest, after a look at the arguments.

    What was not given has its default in `args` afterwards; `is_again` says that it has it already.
    With `is_apart` a process of its own reads the weights: what that imports takes 110 MB and is not needed afterwards.

    Raises:
        BuildRefused, SourceError, EncoderError: they ask for something that cannot be built.
    """
    if not is_again:
        _check_arguments(args)
        given = {name: value for name, value in vars(args).items() if value is not None}
        vars(args).update(BUILD_DEFAULTS | given)
    sampling = _sampling(args.sampling)
    source = _open_source(args)
    print(f"reading the weights of {args.model} ...", file=sys.stderr)
    return source, _load_spec_apart(args) if is_apart else _load_spec(args), sampling


def task_of(
    args: argparse.Namespace, spec: EncoderSpec, store_root: str, sampling: SamplingRule, *, run_id: str | None
) -> BuildTask:
    """Return what every process of the build is to know."""
    partial_frames: PartialFrames = "allow" if args.allow_partial else "refuse"
    return BuildTask(
        spec,
        store_root,
        run_id,
        args.nframe,
        sampling,
        partial_frames,
        store_dtype=args.store_dtype,
        fetch_limit_bytes=args.fetch_limit,
    )


def check_name(args: argparse.Namespace, store: Lookup) -> None:
    """Check the data set's name.

    Raises:
        InvalidKey: it cannot be part of a file's name.
    """
    if args.dataset is not None:
        store.path_of(StepKey(args.dataset, 0))


def check_reach(args: argparse.Namespace) -> None:
    """Refuse what lies in this process's memory: those that decode and write would see nothing of it.

    Raises:
        BuildRefused: so it does.
    """
    for option in ("store", "data", "annotations"):
        if "memory://" in str(getattr(args, option)):
            raise BuildRefused(
                f"--{option} {getattr(args, option)} is seen by one process alone, and a build has several; give a "
                "folder or the URL of a service"
            )


def plan_title(args: argparse.Namespace, spec: EncoderSpec) -> str:
    """Return what tells this build's plan from others in its store, as JSON."""
    title = {"source": args.source, "data": str(absolute(args.data)), "encoder": args.encoder}
    if args.source in VIDEO_SOURCES:
        title |= {"model": cast(VideoEncoderSpec, spec).model_signature, "nframe": args.nframe}
    if args.source != "vla":  # whose features are named by their episodes alone
        title["dataset"] = canonical_dataset_name(args.dataset or data_set_name(args.data))
    return json.dumps(title, sort_keys=True)


def tell_of_other_folders(
    args: argparse.Namespace, spec: EncoderSpec, store: FeatureStore | ReadOnlyStore, *, skipped: int
) -> list[str]:
    """Say on stderr if what the store has under the names of this build was built from another folder; returns it too.

    Nothing else can tell the media apart: a data set may as well have been moved.
    """
    notes: list[str] = []
    if not skipped or args.source not in ("folder", *STEP_SOURCES):
        return notes
    own = json.loads(plan_title(args, spec))
    name = own.get("dataset", "these episodes")
    advice = "name it with another --dataset" if "dataset" in own else "build them into another store"
    for other in map(_read_title, plans.titles(store.root)):
        if other != own and {**other, "data": own["data"]} == own:
            notes.append(
                f"{skipped:,} features of {name} are there already, and {other['data']} was built under such "
                f"names before; if {own['data']} holds other media of the same names, {advice}"
            )
            print(f"note: {notes[-1]}", file=sys.stderr)
    return notes


def _read_title(title: str) -> dict[str, Any]:
    try:
        return dict(json.loads(title))
    except (ValueError, TypeError):
        return {}


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
        "--store-dtype": args.store_dtype is not None and not is_video,
        "--views": args.views is not None and is_video,
        "--frames-per-forward": args.frames_per_forward is not None and not is_video,
        "--compile": args.compile and not is_video,
        "--micro-batch": args.micro_batch is not None and is_video,
        "--nframe": args.nframe is not None and not is_video,
        "--sampling": args.sampling is not None and not is_video,
        "--vlm-reuse-count": args.vlm_reuse_count is not None and is_video,
        "--action-expert-hz": args.action_expert_hz is not None and args.source != "vla",
        "--horizon": args.horizon is not None and args.source != "vla",
    }
    useless = [flag for flag, is_useless in given.items() if is_useless]
    if useless:
        raise BuildRefused(f"{', '.join(useless)} means nothing for --source {args.source}; leave it out")
    if args.revision is not None and (args.model == "small" or Path(args.model).expanduser().is_dir()):
        raise BuildRefused(f"--revision means nothing for --model {args.model}, which is no hub id; leave it out")


def _sampling(text: str) -> SamplingRule:
    try:
        return SamplingRule.parse(text)
    except ValueError as exc:
        raise BuildRefused(f"--sampling: {exc}") from exc


def _open_source(args: argparse.Namespace) -> Source:
    dataset = args.dataset
    if dataset is None and args.source == "folder":
        dataset = data_set_name(args.data)
    source = open_source(
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
    return source if args.micro_batch in (None, 1) else StepBatches(source, args.micro_batch)


def _load_spec(args: argparse.Namespace) -> EncoderSpec:
    return load_spec(
        args.encoder,
        args.model,
        dtype=args.dtype,
        frames_per_forward=args.frames_per_forward,
        is_compiled=args.compile or None,
        revision=args.revision,
        micro_batch=args.micro_batch,
    )


def _load_spec_apart(args: argparse.Namespace) -> EncoderSpec:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_load_spec_and_digest, args).result()


def _load_spec_and_digest(args: argparse.Namespace) -> EncoderSpec:
    spec = _load_spec(args)
    spec.recipe()
    return spec


def set_limits(args: argparse.Namespace, store: FeatureStore | ReadOnlyStore, *, remember: bool) -> None:
    """Put the store under the limits that were asked for, if any were.

    Raises:
        BuildRefused: the soft limit is not below the limit.
    """
    if args.limit is None and args.soft_limit is None:
        return
    try:
        store.set_limit(args.limit, soft_limit_bytes=args.soft_limit, remember=remember)
    except ValueError as exc:
        if isinstance(exc, CacheStoreError):
            raise
        raise BuildRefused(f"--soft-limit: {exc}") from exc
