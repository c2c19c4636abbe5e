"""Whether what a build makes has room under the store's limit, asked before anything is built."""

from __future__ import annotations

import sys

from cache_store import Lookup
from jobs.sizes import format_size
from pipeline.errors import BuildRefused
from pipeline.size_estimate import SizeEstimate, by_length, smallest_feature, upper_bound
from pipeline.work_plan import BuildTask, Plan


def check_one_feature(task: BuildTask, limit_bytes: int, pinned_bytes: int = 0) -> None:
    """Refuse a limit that no feature at all fits under, beside what is pinned: every unit would fail.

    Raises:
        BuildRefused: so it is.
    """
    feature_bytes, what = smallest_feature(task)
    if feature_bytes > limit_bytes - pinned_bytes:
        raise BuildRefused(
            f"{what} takes {format_size(feature_bytes)}, and the store's limit is "
            f"{_shown_limit(limit_bytes, pinned_bytes)}; raise --limit"
        )


def check_room(plan: Plan, store: Lookup, limit_bytes: int, *, may_evict_own: bool) -> None:
    """Refuse what does not fit under the limit beside other features that are pinned: nobody may evict those.

    Raises:
        BuildRefused: so it is.
    """
    pinned_bytes = store.pinned_bytes(besides=plan.wanted()) if plan.todo else 0
    if not may_evict_own:
        check_whole(plan, estimated(plan, store, limit_bytes - pinned_bytes), limit_bytes, pinned_bytes)
    elif pinned_bytes:
        check_one_feature(plan.task, limit_bytes, pinned_bytes)


def estimated(plan: Plan, store: Lookup, room_bytes: float) -> SizeEstimate:
    """Return what the plan takes; where that may be more than `room_bytes`, by the lengths of the videos."""
    needed = upper_bound(plan)
    if needed.bytes > room_bytes and needed.is_upper_bound:
        print("reading the lengths of the videos ...", file=sys.stderr)
        needed = by_length(plan, store)
    return needed


def check_whole(plan: Plan, needed: SizeEstimate, limit_bytes: int, pinned_bytes: int) -> None:
    """Refuse a build that would evict its own features before anybody read them.

    Only what is sure is refused: where `--nframe` allows more than the limit holds, the videos' headers tell how many
    frames there really are; videos that do not tell count in full, and the message says so.

    Raises:
        BuildRefused: so it is.
    """
    if needed.bytes <= limit_bytes - pinned_bytes:
        return
    up_to = "up to " if needed.is_upper_bound else ""
    raise BuildRefused(
        f"this build takes {up_to}{format_size(needed.bytes)} ({needed.features:,} features, {plan.skipped:,} of them "
        f"already stored), and the store's limit is {_shown_limit(limit_bytes, pinned_bytes)}; raise --limit, build "
        "less at a time, or pass --allow-eviction, which keeps what was built or read last"
    )


def _shown_limit(limit_bytes: int, pinned_bytes: int) -> str:
    if not pinned_bytes:
        return format_size(limit_bytes)
    return (
        f"{format_size(limit_bytes)}, of which other features that are pinned or being read take "
        f"{format_size(pinned_bytes)} (vlm-cache pin --list, --remove) and leave "
        f"{format_size(max(0, limit_bytes - pinned_bytes))}"
    )
