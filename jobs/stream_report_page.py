"""A report on streaming as files: one HTML page, Markdown with its plots beside it, and JSON."""

from __future__ import annotations

from pathlib import Path

from consumers.streaming.reports.report import Bars, Curves, Report, Table
from jobs import plots
from jobs.html_page import Section, figure, html_table, page
from jobs.printing import printable, strict_json
from jobs.report_files import write_files
from jobs.stream_report_view import cell, heading, markdown

_ON_WHITE = '<svg style="background:#fff;color:#1c2330" '  # a picture in a Markdown page does not know its ground


def write_report(report: Report, folder: Path) -> bool:
    """Write `report.html`, `report.md`, its `plot-<n>.svg`, and `report.json` into a folder; see `write_files`.

    Plots of an earlier report there go.
    """
    shown = report.without_empty_parts()
    drawn = [(plot.title, _drawn(plot)) for plot in shown.plots]
    named = [(title, f"plot-{number}.svg") for number, (title, _) in enumerate(drawn, start=1)]
    texts = {
        "report.html": report_page(shown, [svg for _, svg in drawn]),
        "report.md": markdown(shown, named),
        "report.json": strict_json(report.to_json(), indent=1) + "\n",
    }
    for (_, name), (_, svg) in zip(named, drawn, strict=True):
        texts[name] = svg.replace("<svg ", _ON_WHITE, 1)
    return write_files(folder, texts, instead_of="plot-[1-9].svg")


def report_page(report: Report, drawn: list[str]) -> str:
    """Return the HTML page; `drawn` are its plots."""
    sections = [Section(shown.heading, _table(shown), shown.note) for shown in report.tables]
    if drawn:
        sections.insert(0, Section("Plots", "".join(map(figure, drawn))))
    told = [(heading(name), cell(name, value)) for name, value in report.facts.items()]
    sections.append(Section("What this was measured with", html_table(("fact", "value"), told, names=2)))
    return page(
        report.title,
        subtitle="; ".join(cell(name, report.facts[name]) for name in ("video", "model", "dtype", "device")),
        warnings=[f"Failed: {printable(line)}" for line in report.failures] + [printable(w) for w in report.warnings],
        sections=sections,
    )


def _table(shown: Table) -> str:
    names = shown.names
    texts = [place for place, name in enumerate(names) if shown.is_text(name)]
    rows = [[cell(name, row.get(name)) for name in names] for row in shown.rows]
    return html_table([heading(name) for name in names], rows, names=texts)


def _drawn(plot: Curves | Bars) -> str:
    if isinstance(plot, Bars):
        labels, values = list(plot.values), list(plot.values.values())
        return plots.horizontal_bars(labels, {plot.unit: values}, title=plot.title, unit=plot.unit, alt=plot.title)
    return plots.curves(plot.series, title=plot.title, unit=plot.unit, axis=plot.axis, alt=plot.title)
