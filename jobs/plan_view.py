"""What a person sees of a plan: one short table, what would be lost, and whether to start."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.plan_report import PlanReport
from jobs.printing import printable, results
from jobs.sizes import format_seconds, format_size
from pipeline.time_estimate import LaneCount, TimeEstimate

_MOST_ROWS = 10


def show(report: PlanReport) -> None:
    """Print the plan."""
    console = results()
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _rows(report):
        grid.add_row(name, text)
    console.print(grid)
    _list(console, "impossible", report.impossible)
    _list(console, "failed when probed", [(one.key, f"{one.stage}: {one.reason}") for one in report.probe.failed])
    _list(console, "ignored", report.ignored)
    evicted = report.eviction.datasets.items()
    _list(
        console,
        "evicted of each data set",
        [(name, f"{one.entries:,}, {format_size(one.bytes)}") for name, one in evicted],
    )
    if report.probe.failed:
        console.print(
            "[bold yellow]note:[/] a build names units that fail, as those above, and goes on", soft_wrap=True
        )
    if report.reasons:
        for reason in report.reasons:
            console.print(f"[bold red]no:[/] {escape(printable(reason))}", soft_wrap=True)
    else:
        console.print("[bold green]yes:[/] the build would fit")


def _rows(report: PlanReport) -> Iterable[tuple[str, str]]:
    yield "to build", _count(report.todo, "unit")
    yield "to skip", f"{report.skipped:,} in the store already"
    if report.impossible:
        yield "impossible", f"[red]{len(report.impossible):,}[/]"
    yield "new features", _size(report)
    yield "one unit", _one_unit(report)
    if report.time is not None:
        yield "time", _time(report.time, report.lanes)
    yield "store", _store(report)
    if report.disk is not None:
        needed, free = format_size(report.disk.needed_bytes), format_size(report.disk.free_bytes)
        yield "disk", _verdict(f"{needed} of {free} free", report.disk.fits)
        yield "would evict", _evicts(report)


def _size(report: PlanReport) -> str:
    up_to = "up to " if report.size.is_upper_bound else ""
    text = f"{up_to}{format_size(report.size.new_bytes)}"
    if report.measured_bytes is not None:
        text += f" of tensors; {format_size(report.measured_bytes)} of files if all are like those probed"
    return text


def _one_unit(report: PlanReport) -> str:
    probe = report.probe
    if probe.decode_s is None or probe.encode_s is None or probe.bytes is None:
        return "not measured"
    text = (
        f"decode {_duration(probe.decode_s)}, encode {_duration(probe.encode_s)}, {format_size(probe.bytes)} "
        f"(mean of {len(probe.units)} on {probe.device})"
    )
    if report.lanes.is_gpu and probe.device == "cpu":
        text += "; [yellow]no GPU here: a GPU encodes faster than this[/]"
    return text


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else format_seconds(seconds)


def _time(time: TimeEstimate, lanes: LaneCount) -> str:
    kind = "GPU" if lanes.is_gpu else "CPU lane"
    return (
        f"{format_seconds(time.wall_s)} on {_count(lanes.lanes, 'lane')} with "
        f"{_count(time.decoders_per_lane, 'decoder')} each; {_hours(time.device_s)} {kind}-hours, "
        f"{time.device_busy:.0%} busy; bound by [bold]{time.bound_by}[/]"
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds >= 36000 else f"{seconds / 3600:.2g}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _store(report: PlanReport) -> str:
    store = report.store
    text = f"{_count(store.entries, 'feature')}, {format_size(store.bytes)}"
    if store.limit_bytes is None:
        return f"{text}, no limit"
    text += f" of {format_size(store.limit_bytes)}"
    if store.pinned_bytes:
        text += f", {format_size(store.pinned_bytes)} of it pinned or being read"
    return _verdict(text, store.fits)


def _verdict(text: str, fits: bool) -> str:
    return f"{text}: [green]fits[/]" if fits else f"{text}: [bold red]does not fit[/]"


def _evicts(report: PlanReport) -> str:
    eviction = report.eviction
    if not eviction.entries and not report.own_bytes_evicted:
        return "nothing"
    text = f"[yellow]{_count(eviction.entries, 'feature')}, {format_size(eviction.bytes)}[/], least recently used first"
    if report.own_bytes_evicted:
        text += f", and {format_size(report.own_bytes_evicted)} of its own"
    return text


def _list(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    console.print(f"[bold]{title}[/]")
    for name, reason in rows[:_MOST_ROWS]:
        console.print(f"  {escape(printable(name))}: {escape(printable(reason))}", soft_wrap=True)
    if len(rows) > _MOST_ROWS:
        console.print(f"  ... and {len(rows) - _MOST_ROWS:,} more; all of them with --json")
