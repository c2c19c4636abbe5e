"""What a person sees of a store's statistics on a terminal: the data sets, the limit, the counters, the pins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cache_store import StoreStats
from cache_store.reports import DatasetStats, ModelStats, PinInfo
from jobs.printing import printable, table
from jobs.sizes import format_age, format_size

MOST_ROWS = 20
# Below this width only what a person asks first is shown; the rest is in wider terminals and in --json.
_WIDE = 130
# When this many entries went unread and they are at least half of the evicted ones, the limit is too small.
_CHURN_AT_LEAST = 20


@dataclass(frozen=True)
class Rates:
    """What happened each second between two looks at a store."""

    written: float
    evicted: float
    hits: float

    @classmethod
    def between(cls, before: StoreStats, after: StoreStats, seconds: float) -> Rates:
        """Entries written are those that appeared and those that were evicted meanwhile."""
        evicted = after.evictions - before.evictions
        written = max(0, after.entries - before.entries + evicted)
        return cls(written / seconds, evicted / seconds, (after.hits - before.hits) / seconds)


def render(
    stats: StoreStats, *, now_s: float, width: int, most_rows: int | None = MOST_ROWS, rates: Rates | None = None
) -> RenderableType:
    """Return the whole view for a terminal of `width` columns; `most_rows` None shows every data set."""
    parts: list[RenderableType] = []
    if stats.datasets:
        parts.append(_datasets(stats, now_s=now_s, is_wide=width >= _WIDE, most_rows=most_rows))
    parts += [Text(line) for line in headlines(stats, now_s=now_s)]
    if rates is not None:
        parts.append(
            Text(f"{rates.written:,.1f} written/s, {rates.evicted:,.1f} evictions/s, {rates.hits:,.1f} hits/s", "bold")
        )
    parts += [Text(f"warning: {line}", "bold yellow") for line in warnings(stats)]
    if losses := list(int8_rows(stats)):
        drawn = table(*zip(INT8_HEADINGS, ("name", *["right"] * 6), strict=True), title="kept as int8, worst first")
        for row in losses[:most_rows]:
            drawn.add_row(*row)
        parts.append(drawn)
    if stats.pins:
        parts.append(pins_table(stats.pins))
    return Group(*parts)


def headlines(stats: StoreStats, *, now_s: float) -> Iterator[str]:
    """Yield the sums in words, a line each."""
    yield f"{stats.entries:,} features, {format_size(stats.bytes)}{_of_limit(stats)}"
    if stats.entries == 0:
        yield "nothing is stored yet; `vlm-cache build --help` shows how to fill a store"
    yield f"{stats.hits:,} hits, {stats.misses:,} misses{_rate_words(stats.hits, stats.misses)}" + (
        f", {stats.damaged:,} damaged files met" if stats.damaged else ""
    )
    unread = f", {stats.evicted_unread:,} of them never read" if stats.evicted_unread else ""
    yield f"{stats.evictions:,} evictions{unread}"
    if stats.oldest is not None and stats.newest is not None:
        oldest, newest = format_age(max(0.0, now_s - stats.oldest)), format_age(max(0.0, now_s - stats.newest))
        yield f"last use: {newest} ago at the latest, {oldest} ago at the earliest".replace("now ago", "just now")


def warnings(stats: StoreStats) -> Iterator[str]:
    """Yield what needs a person's attention."""
    if stats.evicted_unread >= _CHURN_AT_LEAST and 2 * stats.evicted_unread >= stats.evictions:
        yield (
            f"{stats.evicted_unread:,} of {stats.evictions:,} evicted features had never been read: the limit is "
            "smaller than what is in use; raise it with `build --limit`, or prune what is not needed"
        )
    if stats.limit_bytes is not None and stats.bytes > stats.limit_bytes:
        yield (
            f"the store is {format_size(stats.bytes - stats.limit_bytes)} above its limit; "
            "the next write evicts that much"
        )


def by_size(stats: StoreStats) -> list[tuple[str, DatasetStats]]:
    """Return the data sets, the largest first."""
    return sorted(stats.datasets.items(), key=lambda item: (-item[1].bytes, -item[1].entries, item[0]))


@dataclass(frozen=True)
class _Column:
    heading: str
    side: str
    of_dataset: Callable[[str, DatasetStats], RenderableType]
    of_model: Callable[[ModelStats], RenderableType] = lambda model: ""


def _columns(shown: list[tuple[str, DatasetStats]], *, now_s: float, is_wide: bool) -> list[_Column]:
    def indented(model: ModelStats) -> RenderableType:
        return Padding(Text(model_name(model)), (0, 0, 0, 2))

    name = _Column("data set", "name", lambda name, _: Text(printable(name)))
    columns = [
        replace(name, of_model=name.of_model if is_wide else indented),
        _Column("features", "right", lambda _, d: f"{d.entries:,}", lambda model: f"{model.entries:,}"),
        _Column("size", "right", lambda _, d: format_size(d.bytes), lambda model: format_size(model.bytes)),
    ]
    if any(dataset.planned is not None for _, dataset in shown):
        columns.append(_Column("coverage", "right", lambda _, d: _coverage(d)))
    if is_wide:
        columns.append(_Column("hits", "right", lambda _, d: f"{d.hits:,}"))
        columns.append(_Column("misses", "right", lambda _, d: f"{d.misses:,}"))
    columns.append(_Column("hit rate", "right", lambda _, d: _rate(d.hits, d.misses)))
    if is_wide:
        columns.append(_Column("evicted", "right", lambda _, d: f"{d.evictions:,}"))
        columns.append(_Column("written", "right", lambda _, d: _ago(d.oldest_write, now_s)))
    columns.append(_Column("used", "right", lambda _, d: _ago(d.last_use, now_s)))
    if is_wide:
        columns.append(_Column("model", "name", lambda _, d: Text(_models_in_a_word(d)), indented))
    return columns


def _models_in_a_word(dataset: DatasetStats) -> str:
    if len(dataset.models) == 1:
        return model_name(dataset.models[0])
    return f"{len(dataset.models)} models" if dataset.models else "-"


def _datasets(stats: StoreStats, *, now_s: float, is_wide: bool, most_rows: int | None) -> RenderableType:
    ordered = by_size(stats)
    shown = ordered if most_rows is None else ordered[:most_rows]
    columns = _columns(shown, now_s=now_s, is_wide=is_wide)
    drawn = table(*((column.heading, column.side) for column in columns))
    for name, dataset in shown:
        drawn.add_row(*(column.of_dataset(name, dataset) for column in columns))
        if len(dataset.models) > 1:
            for model in dataset.models:
                drawn.add_row(*(column.of_model(model) for column in columns), style="dim")
    left = ordered[len(shown) :]
    if not left:
        return drawn
    entries, size = sum(dataset.entries for _, dataset in left), sum(dataset.bytes for _, dataset in left)
    return Group(drawn, Text(f"and {len(left):,} more with {entries:,} features, {format_size(size)} (--all)\n", "dim"))


INT8_HEADINGS = ("data set", "features", "cosine", "mean", "max error", "relative", "mean")


def int8_rows(stats: StoreStats) -> Iterator[tuple[str, ...]]:
    """Yield what int8 cost each data set that has some, the worst first and those that tell nothing last.

    Under `INT8_HEADINGS`; the figures are those of the features that tell, "n of N" where others do not.
    """
    kept = [(name, data.int8, data.int8_untold) for name, data in stats.datasets.items()]
    for name, loss, untold in sorted(kept, key=lambda item: (item[1].worst_cosine if item[1] else inf, item[0])):
        if loss is None:
            if untold:
                yield printable(name), f"0 of {untold:,}", *["-"] * 5
            continue
        yield (
            printable(name),
            f"{loss.entries:,} of {loss.entries + untold:,}" if untold else f"{loss.entries:,}",
            f"{loss.worst_cosine:.6f}",
            f"{loss.mean_cosine:.6f}",
            f"{loss.max_error:.3g}",
            f"{100 * loss.worst_relative_error:.2f} %",
            f"{100 * loss.mean_relative_error:.2f} %",
        )


def model_name(model: ModelStats) -> str:
    """Return how a model is called: as its recipe names it, else by the recipe's fingerprint."""
    if model.model is None:
        return "model not recorded" if model.recipe_fingerprint8 is None else f"recipe {model.recipe_fingerprint8}"
    return printable(model.model)


def pins_table(pins: list[PinInfo]) -> Table:
    """Return what is kept from eviction, and until when."""
    drawn = table(("pin", "left"), ("keeps", "name"), ("until", "left"), ("note", "name"), title="pinned")
    for pin in pins:
        keeps = [printable(name) for name in pin.datasets[:5]]
        if len(pin.datasets) > 5:
            keeps.append(f"{len(pin.datasets) - 5:,} more")
        if pin.entries:
            keeps.append(f"{pin.entries:,} single features")
        drawn.add_row(pin.id[:8], Text(", ".join(keeps)), Text(pin_end(pin)), Text(printable(pin.note)))
    return drawn


def pin_end(pin: PinInfo) -> str:
    """Return what ends a pin, in words that follow "until"."""
    if pin.holder is not None:
        return f"process {printable(pin.holder)} ends"
    if pin.expires is None:
        return "removed"
    return datetime.fromtimestamp(pin.expires).isoformat(sep=" ", timespec="minutes")


def _of_limit(stats: StoreStats) -> str:
    if stats.limit_bytes is None:
        return ", no limit"
    soft = f", soft limit {format_size(stats.soft_limit_bytes)}" if stats.soft_limit_bytes is not None else ""
    return f" of {format_size(stats.limit_bytes)} ({100 * stats.bytes / stats.limit_bytes:.1f} %){soft}"


def _coverage(dataset: DatasetStats) -> Text:
    if dataset.planned is None:
        return Text("-")
    present = dataset.planned_present or 0
    return Text(f"{present:,}/{dataset.planned:,}", "green" if present == dataset.planned else "yellow")


def _rate(hits: int, misses: int) -> str:
    return f"{100 * hits / (hits + misses):.1f} %" if hits + misses else "-"


def _rate_words(hits: int, misses: int) -> str:
    return f", hit rate {_rate(hits, misses)}" if hits + misses else ""


def _ago(when_s: float | None, now_s: float) -> str:
    return "-" if when_s is None else format_age(max(0.0, now_s - when_s))
