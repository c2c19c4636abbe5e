"""The HTML page of a store's statistics: what `vlm-cache stats --html` writes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from cache_store import EntryInfo, StoreStats
from cache_store.reports import DatasetStats
from jobs import plots
from jobs.html_page import Section, details, figure, html_table, page
from jobs.printing import printable
from jobs.sizes import format_age, format_size
from jobs.stats_view import INT8_HEADINGS, by_size, headlines, int8_rows, model_name, pin_end, warnings

_BARS = 20
_MODELS = 6  # as many as there are colours beside the one for the rest
_TABLE_ROWS = 1000
_HOUR, _DAY = 3600.0, 86400.0
# Upper ends in seconds, with what the axis says.
_AGES = (
    (_HOUR, "< 1 h"),
    (6 * _HOUR, "1-6 h"),
    (_DAY, "6-24 h"),
    (3 * _DAY, "1-3 d"),
    (7 * _DAY, "3-7 d"),
    (28 * _DAY, "1-4 wk"),
    (91 * _DAY, "1-3 mo"),
    (365 * _DAY, "3-12 mo"),
    (float("inf"), "> 1 y"),
)


def stats_page(stats: StoreStats, entries: Iterable[EntryInfo], *, title: str, now_s: float) -> str:
    """Return the page; `entries` are only counted, so an iterator of any length will do."""
    when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now_s))
    subtitle = f"{'; '.join(headlines(stats, now_s=now_s))}. As of {when}."
    return page(
        printable(title), subtitle=subtitle, warnings=warnings(stats), sections=_sections(stats, entries, now_s)
    )


def _sections(stats: StoreStats, entries: Iterable[EntryInfo], now_s: float) -> Iterator[Section]:
    if stats.entries or stats.limit_bytes is not None:
        yield Section("Size", figure(_level(stats)))
    if stats.entries:
        yield Section("Data sets and models", figure(_bytes_by_dataset(stats)), _what_is_left(stats))
        yield Section("Last use", figure(_ages(bytes_by_age(entries, now_s))))
    if stats.hits or stats.misses:
        yield Section("Reads", figure(_reads(stats)))
    yield Section("Counters", _counters(stats), "since the statistics began, over all processes")
    if losses := list(int8_rows(stats))[:_TABLE_ROWS]:
        note = "against the exact features, when they were written; each worst figure before its mean, worst first"
        yield Section("Kept as int8", html_table(INT8_HEADINGS, losses), note)
    if stats.pins:
        yield Section("Pins", _pins(stats), "kept from eviction and from prune")
    if stats.datasets:
        yield Section("All data sets", _dataset_table(stats, now_s))


def _what_is_left(stats: StoreStats) -> str:
    left = by_size(stats)[_BARS:]
    if not left:
        return ""
    size = format_size(sum(dataset.bytes for _, dataset in left))
    return f"the {_BARS} largest of {len(stats.datasets):,}; the other {len(left):,} hold {size} together"


def _level(stats: StoreStats) -> str:
    marks = {}
    if stats.limit_bytes is not None:
        marks[f"limit {format_size(stats.limit_bytes)}"] = float(stats.limit_bytes)
    if stats.soft_limit_bytes is not None:
        marks[f"soft limit {format_size(stats.soft_limit_bytes)}"] = float(stats.soft_limit_bytes)
    unit, divisor = _unit(max([stats.bytes, *marks.values()]))
    words = ", ".join([f"{format_size(stats.bytes)} stored", *marks]) + ("" if marks else ", no limit")
    scaled = {name: at / divisor for name, at in marks.items()}
    return plots.level(stats.bytes / divisor, scaled, title=words, unit=unit, alt=f"Size against the limit: {words}")


def _bytes_by_dataset(stats: StoreStats) -> str:
    ordered = by_size(stats)
    shown = ordered[:_BARS]
    names = _largest_models(dataset for _, dataset in ordered)
    labels = [printable(name) for name, _ in shown]
    rows = [_by_model(dataset, names) for _, dataset in shown]
    unit, divisor = _unit(max(sum(row.values()) for row in rows))
    series = {name: [row.get(name, 0) / divisor for row in rows] for name in [*names, "other models"]}
    series = {name: values for name, values in series.items() if any(values)}
    alt = f"Bytes by data set and model. Largest: {', '.join(labels[:3])}"
    title = "Stored bytes by data set" + (f", made by {next(iter(series))}" if len(series) == 1 else " and model")
    return plots.horizontal_bars(labels, series, title=title, unit=unit, alt=alt)


def _largest_models(datasets: Iterable[DatasetStats]) -> list[str]:
    sums: dict[str, int] = {}
    for dataset in datasets:
        for model in dataset.models:
            sums[model_name(model)] = sums.get(model_name(model), 0) + model.bytes
    return sorted(sums, key=lambda name: (-sums[name], name))[:_MODELS]


def _by_model(dataset: DatasetStats, names: list[str]) -> dict[str, int]:
    sums = dict.fromkeys(names, 0)
    for model in dataset.models:
        if model_name(model) in sums:
            sums[model_name(model)] += model.bytes
    return {**sums, "other models": dataset.bytes - sum(sums.values())}


def bytes_by_age(entries: Iterable[EntryInfo], now_s: float) -> list[int]:
    """Return the bytes of entries by the time since their last use, in the steps that the plot shows."""
    sums = [0] * len(_AGES)
    for entry in entries:
        age_s = now_s - entry.last_use
        sums[next(position for position, (end_s, _) in enumerate(_AGES) if age_s < end_s)] += entry.bytes
    return sums


def _ages(sums: list[int]) -> str:
    unit, divisor = _unit(max(sums))
    most = max(range(len(sums)), key=sums.__getitem__)
    return plots.columns(
        [words for _, words in _AGES],
        [size / divisor for size in sums],
        title="Stored bytes by time since the last use",
        unit=unit,
        axis="time since last read or written",
        alt=f"Bytes by time since the last use; most are of {_AGES[most][1]}",
    )


def _reads(stats: StoreStats) -> str:
    ordered = sorted(stats.datasets.items(), key=lambda item: (-item[1].hits - item[1].misses, item[0]))
    asked = [(name, dataset) for name, dataset in ordered if dataset.hits or dataset.misses]
    shown = asked[:_BARS]
    labels = [printable(name) for name, _ in shown]
    hits, misses = [dataset.hits for _, dataset in shown], [dataset.misses for _, dataset in shown]
    alt = f"Reads: {stats.hits:,} hits and {stats.misses:,} misses over {len(asked):,} data sets"
    title = (
        "Reads by data set"
        if len(shown) == len(asked)
        else f"Reads of the {_BARS} most read of {len(asked):,} data sets"
    )
    return plots.horizontal_bars(labels, {"hits": hits, "misses": misses}, title=title, unit="reads", alt=alt)


def _counters(stats: StoreStats) -> str:
    asked = stats.hits + stats.misses
    rows = [
        ("features", f"{stats.entries:,}"),
        ("bytes", f"{stats.bytes:,}"),
        ("hits", f"{stats.hits:,}"),
        ("misses", f"{stats.misses:,}"),
        ("hit rate", f"{100 * stats.hits / asked:.1f} %" if asked else "-"),
        ("evictions", f"{stats.evictions:,}"),
        ("evicted without having been read", f"{stats.evicted_unread:,}"),
        ("damaged files met by readers", f"{stats.damaged:,}"),
    ]
    return html_table(("counter", "value"), rows)


def _pins(stats: StoreStats) -> str:
    rows = []
    for pin in stats.pins:
        keeps = ", ".join(map(printable, pin.datasets[:20])) or f"{pin.entries:,} single features"
        rows.append((pin.id[:8], keeps, pin_end(pin), printable(pin.note)))
    return html_table(("pin", "keeps", "until", "note"), rows, names=4)


def _dataset_table(stats: StoreStats, now_s: float) -> str:
    ordered = by_size(stats)
    headings = ("data set", "model", "features", "size", "coverage", "hits", "misses", "evicted", "written", "used")
    rows = [_row(name, dataset, now_s) for name, dataset in ordered[:_TABLE_ROWS]]
    drawn = html_table(headings, rows, names=2)
    if len(ordered) > _TABLE_ROWS:
        drawn += (
            f'<p class="note">and {len(ordered) - _TABLE_ROWS:,} smaller ones, which <code>stats --json</code> has</p>'
        )
    return drawn if len(ordered) <= _BARS else details(f"{len(ordered):,} data sets, the largest first", drawn)


def _row(name: str, dataset: DatasetStats, now_s: float) -> tuple[str, ...]:
    def ago(when_s: float | None) -> str:
        return "-" if when_s is None else format_age(max(0.0, now_s - when_s))

    covered = "-" if dataset.planned is None else f"{dataset.planned_present or 0:,}/{dataset.planned:,}"
    return (
        printable(name),
        ", ".join(model_name(model) for model in dataset.models) or "-",
        f"{dataset.entries:,}",
        format_size(dataset.bytes),
        covered,
        f"{dataset.hits:,}",
        f"{dataset.misses:,}",
        f"{dataset.evictions:,}",
        ago(dataset.oldest_write),
        ago(dataset.last_use),
    )


def _unit(most_bytes: float) -> tuple[str, float]:
    """The binary unit in which `most_bytes` is a number of up to four digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while most_bytes >= 1024 and power < len(units) - 1:
        most_bytes /= 1024
        power += 1
    return units[power], 1024.0**power
