"""`vlm-cache build`: check everything that can be checked, then run the plan on Ray and report."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from types import FrameType

from cache_store import FeatureStore
from jobs.build_request import (
    asked_for,
    check_name,
    check_reach,
    plan_title,
    set_limits,
    task_of,
    tell_of_other_folders,
)
from jobs.build_room import check_one_feature, check_room
from jobs.build_views import BuildView, print_report
from jobs.failed_units import OnlyThese, check_recipes
from jobs.printing import print_json
from jobs.run_files import FailedRun
from jobs.run_folder import RunFolder
from pipeline.lanes import TimeLimits, run_build
from pipeline.run_events import RunEvents
from pipeline.sources import Benchmark, data_set_name
from pipeline.work_plan import plan_build


def build(args: argparse.Namespace, *, only: FailedRun | None = None) -> int:
    """Build a cache; returns 0 if every sample has its feature, 1 if some failed or were not started.

    With `only`, the failed units of an earlier run of the same arguments and nothing else.
    """
    check_reach(args)
    whole, spec, sampling = asked_for(args, is_again=only is not None)
    source = whole if only is None else OnlyThese(whole, only.recipes)
    # Without a run's id nothing protects what the build writes: it may evict its own features.
    run = uuid.uuid4().hex
    run_id = None if args.allow_eviction else run
    with FeatureStore(args.store, run_id=run_id) as store, ExitStack() as at_end:
        set_limits(args, store, remember=False)
        task = task_of(args, spec, store.location, sampling, run_id=run_id)
        if store.limit_bytes is not None:
            check_one_feature(task, store.limit_bytes)
        check_name(args, store)
        if only is not None:
            check_recipes(only, source, task)
        plan = plan_build(source, task, store, overwrite=args.overwrite)
        if store.limit_bytes is not None:
            check_room(plan, store, store.limit_bytes, may_evict_own=args.allow_eviction)
        folder = RunFolder.asked_for(args.report) if args.report else RunFolder.in_store(store.root, run)
        at_end.callback(folder.close)
        notes: list[str] = []
        if only is None:
            notes = tell_of_other_folders(args, spec, store, skipped=plan.skipped)

        def begin() -> RunEvents:
            # A refused build leaves the store, and the dead letters in its report's folder, as they were.
            set_limits(args, store, remember=True)
            if only is None:
                store.remember_plan(plan_title(args, spec), plan.wanted())
            events = folder.begin(args, task.shared_recipe())
            if isinstance(whole, Benchmark):
                folder.write_questions(whole.questions())
            return events

        # Ray tells of a process that died on stdout, which results have for themselves.
        with _stop_on_signal() as should_stop, redirect_stdout(sys.stderr), BuildView(title=_title(args)) as view:
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
                begin=begin,
                dataset=args.dataset or data_set_name(args.data),
            )
        folder.end(report)
    if only is not None and report.not_started:
        print(
            f"{report.not_started:,} of the units that had failed were not started; they are still dead letters of the "
            f"earlier run: vlm-cache retry-failed {shlex.quote(str(only.folder))}",
            file=sys.stderr,
        )
    if args.json:
        print_json({**report.to_json(), "notes": notes, "folder": str(folder.folder)})
    else:
        print_report(report, folder.folder)
    return report.exit_status


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
