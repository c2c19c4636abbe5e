"""Row `publish-full`: what a publish costs beside a million entries, against the same publish in an empty store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped, settle_disk
from benchmarks.store.full_store import FAR_LIMIT_BYTES, filled
from benchmarks.store.keys import RECIPE, step_key
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Line, Row
from benchmarks.store.scale import Scale
from benchmarks.store.timing import Contestant, interleaved_s, median, seconds_of
from cache_store import FeatureStore

RAW = "raw file write"
PUT = "put, limit and journal, without flush"
OLD = OldScripts.name
MOST_RATIO = 1.1


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row: each way to publish, in the empty and in the full folder, in turns."""
    roots = {"empty": folder / "empty", "full": filled(folder, scale)}
    features = small_features(scale.publishes, scale.entry_width)
    contestants: list[Contestant] = []
    first_puts: list[str] = []
    with ExitStack() as cleanup:
        for place, root in roots.items():
            store = cleanup.enter_context(FeatureStore(root, limit_bytes=FAR_LIMIT_BYTES))
            first_key = step_key(0, episodes="first")
            with flushes_skipped():
                first_s = seconds_of(lambda store=store, key=first_key: store.put(key, features[0], recipe=RECIPE))  # type: ignore[misc]
            first_puts.append(f"{first_s * 1e3:.1f} ms in the {place} store")
            content = store.path_of(first_key).read_bytes()
            # In the very folder of the features, because ext4's own cost grows with a folder.
            contestants.append(_raw(place, RawFiles(root, features[0]), content, scale.publishes))
            contestants.append(_put(place, store, features, scale.publishes))
            # They rescan whatever lies beside them, so "empty" has to be a folder of their own.
            old = OldScripts(root if place == "full" else folder / "empty_old")
            contestants.append(_old(place, old, features, scale.rescans))
        times_s = interleaved_s(contestants, rounds=scale.publish_rounds)
    lines = [
        *_pair(RAW, times_s),
        *_pair(PUT, times_s, most_ratio=MOST_RATIO),
        *_pair(OLD, times_s),
    ]
    return [
        Row(
            "publish-full",
            f"publish beside {scale.entries:,} entries, against an empty store",
            "µs per publish",
            lines,
            [
                "Ratios are to the same way of publishing in the empty store. The first put of a process: "
                f"{', '.join(first_puts)}.",
                f"{scale.publishes:,} publishes per round ({scale.rescans} by the old scripts), "
                f"{scale.publish_rounds} rounds in turns; all entries lie in one folder.",
            ],
        )
    ]


def _name(way: str, place: str) -> str:
    return f"{way}, {place}"


def _raw(place: str, raw: RawFiles, content: bytes, count: int) -> Contestant:
    def run(round_number: int) -> None:
        for index in range(round_number * count, (round_number + 1) * count):
            raw.write(index, content)

    return Contestant(_name(RAW, place), count, run, settle_disk)


def _put(place: str, store: FeatureStore, features: torch.Tensor, count: int) -> Contestant:
    def run(round_number: int) -> None:
        with flushes_skipped():
            for i in range(count):
                key = step_key(round_number * count + i, episodes="later")
                store.put(key, features[i], recipe=RECIPE)

    return Contestant(_name(PUT, place), count, run, settle_disk)


def _old(place: str, old: OldScripts, features: torch.Tensor, count: int) -> Contestant:
    def run(round_number: int) -> None:
        for i in range(count):
            old.write(round_number * count + i, features[i])

    return Contestant(_name(OLD, place), count, run, settle_disk)


def _pair(way: str, times_s: dict[str, list[float]], *, most_ratio: float | None = None) -> list[Line]:
    """The lines of one way, whose base is its own figure in the empty store."""
    empty, full = times_s[_name(way, "empty")], times_s[_name(way, "full")]
    ratios = [full_s / empty_s for full_s, empty_s in zip(full, empty, strict=True)]
    return [
        Line(_name(way, "empty"), median(empty) * 1e6, 1.0),
        Line(_name(way, "full"), median(full) * 1e6, median(ratios), min(ratios), max(ratios), most_ratio=most_ratio),
    ]
