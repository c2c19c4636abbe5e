"""The HTML page of one build's run: what `vlm-cache report` writes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from jobs import plots
from jobs.html_page import Section, details, figure, html_table, page
from jobs.printing import printable
from jobs.run_summary import LaneSummary, RunSummary
from jobs.run_timeline import STAGES, STEPS
from jobs.sizes import format_rate, format_seconds, format_size

_LANES = 16  # drawn
_TABLE_ROWS = 500
_OPEN_ROWS = 20  # of a table that need not be opened


def run_page(summary: RunSummary, letters: Iterable[dict[str, Any]], *, bare: float | None) -> str:
    """Return the page; `letters` are the run's dead letters, and `bare` what one lane's bare model does per second."""
    return page(
        printable(f"Build of {title(summary)}"),
        subtitle=f"{'; '.join(headlines(summary, bare))}.",
        warnings=warnings(summary),
        sections=_sections(summary, letters, bare),
    )


def title(summary: RunSummary) -> str:
    """Return what was built, in words."""
    asked = summary.build.get("arguments", {})
    words = {name: asked.get(name) for name in ("data", "encoder", "model")}
    if not all(words.values()):
        return str(summary.folder)
    return f"{words['data']} with {words['encoder']} {words['model']}"


def headlines(summary: RunSummary, bare: float | None) -> Iterator[str]:
    """Yield the most important figures, each as a few words."""
    yield f"{summary.built:,} built, {summary.skipped + summary.present:,} skipped"
    yield f"{summary.failed:,} failed, {summary.not_started:,} not {'started' if summary.is_finished else 'ended'}"
    lanes = f"{len(summary.lanes)} lane{'s' * (len(summary.lanes) != 1)}"
    yield f"{format_size(summary.bytes)} written in {format_seconds(summary.seconds)} by {lanes}"
    rate, alone = summary.units_per_s, summary.bare_units_per_s(bare)
    if rate is not None and alone is not None:
        yield f"{format_rate(rate)} while encoders were up, {100 * rate / alone:.0f} % of {_of_what(bare)}"
    if summary.restarts:
        yield f"{summary.restarts:,} processes died and came back"


def warnings(summary: RunSummary) -> Iterator[str]:
    """Yield what a reader must know before the figures."""
    if not summary.is_finished and not summary.errors:
        yield f"No end: the build is at work, or was killed. What is shown ends {format_seconds(summary.last_s)} in."
    for error in summary.errors[:3]:
        yield printable(f"Ended by an error: {error}")
    if stopped := summary.totals.get("stopped") or summary.drained:
        yield printable(f"Stopped early: {stopped}")
    if warning := summary.totals.get("warning"):
        yield printable(str(warning))
    if summary.unreadable:
        yield f"{summary.unreadable:,} lines of the events cannot be read; what they told is missing here."


def _of_what(bare: float | None) -> str:
    return "what the encoders would do alone" if bare is None else "the bare model"


def _sections(summary: RunSummary, letters: Iterable[dict[str, Any]], bare: float | None) -> Iterator[Section]:
    lanes = list(summary.lanes.values())
    if summary.built:
        yield Section("Timeline of the lanes", figure(_timeline(summary)), _timeline_note(summary))
        yield Section("Throughput", figure(_throughput(summary, bare)), _throughput_note(summary, bare))
        yield Section("Where the time went", figure(_shares(lanes[:_LANES])), _shares_note(lanes))
    if lanes:
        yield Section("Lanes", _foldable(_lane_table(summary), len(lanes), "lanes"), _LANES_NOTE)
    if summary.failures:
        yield Section("Failures", figure(_failures(summary)) + _letter_table(summary, letters))
    if summary.deaths:
        yield Section("Processes that died", _death_table(summary))
    if summary.slowest:
        yield Section(
            "Slowest units",
            _slowest(summary),
            f"the {len(summary.slowest)} with the most seconds in the three stages, without waiting between them",
        )
    yield Section("What was asked for", details("arguments and versions", _asked(summary)))


def _timeline(summary: RunSummary) -> str:
    timeline = summary.timeline
    names = list(summary.lanes)[:_LANES]
    labels = list(map(printable, names))
    unit, unit_s = _time_unit(timeline.duration_s)
    marks = [(at_s / unit_s, names.index(lane)) for at_s, lane, _, _ in summary.deaths if lane in names]
    shared: dict[str, Any] = {
        "mark": "a process died",
        "end": timeline.duration_s / unit_s,
        "unit": f"{unit} since the build's start",
        "alt": f"Decoding, encoding and writing of {len(names)} lanes over {format_seconds(timeline.duration_s)}",
    }
    if timeline.bars is None:
        processes = {"decode": [summary.lanes[name].decoders for name in names]}
        shares = {
            stage: [
                list(timeline.shares(name, stage, processes=count))
                for name, count in zip(names, processes.get(stage, [1] * len(names)), strict=True)
            ]
            for stage in STAGES
        }
        return plots.lines_of_shares(labels, shares, marks, **shared)
    bars = timeline.bars
    drawn = {
        stage: [[(begin / unit_s, end / unit_s) for begin, end in bars.get((name, stage), [])] for name in names]
        for stage in STAGES
    }
    return plots.lines_of_bars(labels, drawn, marks, **shared)


def _timeline_note(summary: RunSummary) -> str:
    words = "one bar for each unit in each stage"
    if summary.timeline.bars is None:
        step = format_seconds(summary.timeline.duration_s / STEPS)
        share = f"the share of {step} that the lane's decoders, its device or its writers worked"
        words = f"too many units for a bar each: the height is {share}"
    return words + _first_lanes(len(summary.lanes))


def _first_lanes(count: int) -> str:
    return f"; the first {_LANES} of {count} lanes" if count > _LANES else ""


def _throughput(summary: RunSummary, bare: float | None) -> str:
    borders, rates = summary.timeline.rates()
    unit, unit_s = _time_unit(summary.timeline.duration_s)
    alone = summary.bare_units_per_s(bare)
    return plots.steps(
        [border / unit_s for border in borders],
        rates,
        alone,
        name=_of_what(bare) + (f": {format_rate(alone)}" if alone is not None else ""),
        unit="units per second",
        axis=f"{unit} since the build's start",
        alt="Finished units per second over time",
    )


def _throughput_note(summary: RunSummary, bare: float | None) -> str:
    rate = summary.units_per_s
    if rate is None:
        return ""
    words = f"{format_rate(rate)} from the first encoder that was ready to the last unit"
    if bare is None:
        return (
            f"{words}; the line is the pace of the encoders if they never waited: lanes x units / seconds of encoding"
        )
    return f"{words}; the line is the bare model's {format_rate(bare)} times {len(summary.lanes)} lanes"


def _shares(lanes: list[LaneSummary]) -> str:
    sums = [max(lane.decode_s + lane.encode_s + lane.write_s, 1e-9) for lane in lanes]
    series = {
        stage: [100 * getattr(lane, f"{stage}_s") / whole for lane, whole in zip(lanes, sums, strict=True)]
        for stage in STAGES
    }
    alt = "Share of decoding, encoding and writing in each lane's working seconds"
    return plots.horizontal_bars([printable(lane.name) for lane in lanes], series, title=alt, unit="%", alt=alt)


def _shares_note(lanes: list[LaneSummary]) -> str:
    return (
        "seconds of all of a lane's processes and threads added up; stages run beside each other, "
        "so that the longest is what limits the lane, divided by its number of decoders" + _first_lanes(len(lanes))
    )


_LANES_NOTE = "busy: share of the time, from when the lane's encoder could work to the last unit, that it encoded"


def _lane_table(summary: RunSummary) -> str:
    headings = ("lane", "where", "units", "size", "decode", "encode", "write", "busy", "decoders", "restarts")
    rows = (
        (
            printable(lane.name),
            printable(f"{lane.host} {lane.device}".strip()) or "never came up",
            f"{lane.units:,}",
            format_size(lane.bytes),
            format_seconds(lane.decode_s),
            format_seconds(lane.encode_s),
            format_seconds(lane.write_s),
            f"{100 * lane.busy_share(summary.last_unit_s):.0f} %",
            f"{lane.decoders}",
            f"{lane.restarts or ''}",
        )
        for lane in summary.lanes.values()
    )
    return html_table(headings, rows, names=2)


def _failures(summary: RunSummary) -> str:
    ordered = summary.failures.most_common(20)
    labels = [printable(f"{stage}: {error}") for (stage, error), _ in ordered]
    counts = [count for _, count in ordered]
    alt = f"Failed units by stage and error; most are {labels[0]}"
    return plots.horizontal_bars(labels, {"units": counts}, title="By stage and error", unit="units", alt=alt)


def _letter_table(summary: RunSummary, letters: Iterable[dict[str, Any]]) -> str:
    fields = ("key", "stage", "error", "attempts", "host", "reason")
    rows = [tuple(printable(str(letter.get(name, ""))) for name in fields) for letter in islice(letters, _TABLE_ROWS)]
    drawn = html_table(fields, rows, names=len(fields))
    if summary.failed > len(rows):
        drawn += f'<p class="note">and {summary.failed - len(rows):,} more, which <code>failed.jsonl</code> has</p>'
    return _foldable(drawn, len(rows), "failed units")


def _death_table(summary: RunSummary) -> str:
    rows = [
        (format_seconds(at_s), *map(printable, (lane, process, reason)))
        for at_s, lane, process, reason in summary.deaths
    ]
    drawn = html_table(("at", "lane", "process", "reason"), rows, names=4)
    return _foldable(drawn, len(rows), "deaths")


def _slowest(summary: RunSummary) -> str:
    rows = (
        (
            printable(unit.key),
            printable(unit.lane),
            *(f"{seconds:.2f} s" for seconds in (unit.seconds, unit.decode_s, unit.encode_s, unit.write_s)),
            format_size(unit.bytes),
        )
        for unit in summary.slowest
    )
    return html_table(("key", "lane", "all", "decode", "encode", "write", "size"), rows, names=2)


def _asked(summary: RunSummary) -> str:
    build = summary.build
    rows = [(name, f"{value}") for name, value in build.get("arguments", {}).items() if value not in (None, False)]
    rows += [(f"{name} (version)", f"{value}") for name, value in build.get("versions", {}).items()]
    rows += [(name, f"{build[name]}") for name in ("host", "recipe_fingerprint") if name in build]
    if summary.started is not None:
        rows.append(("started", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(summary.started))))
    return html_table(("argument", "value"), ((printable(name), printable(value)) for name, value in rows), names=2)


def _foldable(drawn: str, rows: int, what: str) -> str:
    return drawn if rows <= _OPEN_ROWS else details(f"{rows:,} {what}", drawn)


def _time_unit(duration_s: float) -> tuple[str, float]:
    if duration_s < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if duration_s < 3 * 3600 else ("hours", 3600.0)
