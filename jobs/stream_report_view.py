"""A report on streaming as text: its cells in words, tables for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from consumers.streaming.reports.report import Cell, Report, Table
from jobs.printing import printable, table
from jobs.sizes import format_number, format_size

_WORDS = {"ttft": "TTFT", "gb": "GB"}
# What a name ends in, and what its heading says instead; bytes carry their unit in the cell.
_UNITS = (("_per_s", "/s"), ("_s", " (s)"), ("_bytes", ""))


def heading(name: str) -> str:
    """Return a figure's name as people read it: `ttft_s` is `TTFT (s)`."""
    for suffix, unit in _UNITS:
        if name.endswith(suffix):
            return heading(name.removesuffix(suffix)) + unit
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def cell(name: str, value: Cell) -> str:
    """Return one figure of that name as text, empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    if name.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else format_number(value)


def facts(report: Report) -> str:
    """Return what the figures depend on as one line."""
    return "; ".join(f"{heading(name)} {cell(name, value)}" for name, value in report.facts.items())


def for_terminal(report: Report) -> RenderableType:
    """Return the whole report for a terminal, without its plots."""
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text(facts(report)), Text("")]
    for shown in report.without_empty_parts().tables:
        columns = [(heading(name), "name" if shown.is_text(name) else "right") for name in shown.names]
        drawn = table(*columns, title=printable(shown.heading))
        drawn.padding = (0, 1, 0, 0)
        for column in drawn.columns:
            column.no_wrap = False  # headings break between words where the terminal is narrow
        for row in shown.rows:
            drawn.add_row(*(Text(_unbroken(name, row.get(name))) for name in shown.names))
        parts += [drawn, Text(shown.note, style="dim")] if shown.note else [drawn]
        parts.append(Text(""))
    parts += [Text(f"look at: {printable(line)}", style="yellow") for line in report.warnings]
    parts += [Text(f"failed: {printable(line)}", style="bold red") for line in report.failures]
    return Group(*parts)


def _unbroken(name: str, value: Cell) -> str:
    text = cell(name, value)
    return text if isinstance(value, str) else text.replace(" ", "\N{NO-BREAK SPACE}")


def markdown(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    """Return the whole report as Markdown; `pictures` are (title, file beside it)."""
    return "\n\n".join([f"# {report.title}", *_parts(report, pictures)]) + "\n"


def _parts(report: Report, pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    for sign, lines in (("**Failed:**", report.failures), ("**Look at:**", report.warnings)):
        yield from (f"{sign} {_plain(printable(line))}" for line in lines)
    yield _plain(facts(report))
    yield from (f"![{_plain(title)}]({file})" for title, file in pictures)
    for shown in report.tables:
        yield f"## {_plain(shown.heading)}"
        if shown.note:
            yield _plain(shown.note)
        yield _markdown_table(shown)


def _markdown_table(shown: Table) -> str:
    names = shown.names
    lines = [_row(heading(name) for name in names), _row(":--" if shown.is_text(name) else "--:" for name in names)]
    lines += [_row(_plain(cell(name, row.get(name))) for name in names) for row in shown.rows]
    return "\n".join(lines)


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Escape what Markdown or the HTML in it would take for more than text."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text
