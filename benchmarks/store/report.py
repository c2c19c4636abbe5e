"""The rows that a run measured, as values, as a table on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.store.timing import Contestant, median, ratios_to

Verdict = Literal["pass", "fail", ""]


@dataclass(frozen=True)
class Line:
    """One contestant's figures in one row; `value` is None for what was not measured, and `note` says why."""

    name: str
    value: float | None  # median over the rounds, in the row's unit
    ratio: float | None = None  # median over the rounds of the ratio to the base of the same round
    ratio_low: float | None = None
    ratio_high: float | None = None
    most_ratio: float | None = None  # the targets
    most_value: float | None = None
    least_ratio: float | None = None  # the same where more is better: the unit is a rate
    least_value: float | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether every target of the line is met; "" where there is none, or nothing was measured."""
        checks = []
        if self.most_ratio is not None and self.ratio is not None:
            checks.append(self.ratio <= self.most_ratio)
        if self.most_value is not None and self.value is not None:
            checks.append(self.value <= self.most_value)
        if self.least_ratio is not None and self.ratio is not None:
            checks.append(self.ratio >= self.least_ratio)
        if self.least_value is not None and self.value is not None:
            checks.append(self.value >= self.least_value)
        if not checks:
            return ""
        return "pass" if all(checks) else "fail"


@dataclass(frozen=True)
class Row:
    """One row of the targets: what was done, in which unit, and every contestant's figures."""

    id: str
    title: str
    unit: str
    lines: list[Line]
    remarks: list[str] = field(default_factory=list)


def not_measured(name: str, reason: str) -> Line:
    """A line for a contestant that belongs into the table but could not be run."""
    return Line(name, None, note=reason)


def lines_of(
    contestants: Sequence[Contestant], times_s: Mapping[str, Sequence[float]], *, base: str, unit_s: float
) -> list[Line]:
    """The measured contestants in their order; `unit_s` is the row's unit in seconds (1e-6 for microseconds)."""
    ratios = ratios_to(base, times_s)
    return [
        Line(
            contestant.name,
            median(times_s[contestant.name]) / unit_s,
            median(ratios[contestant.name]),
            min(ratios[contestant.name]),
            max(ratios[contestant.name]),
            most_ratio=contestant.most_ratio,
            note=contestant.note,
        )
        for contestant in contestants
    ]


def rate_lines(
    rates: Mapping[str, Sequence[float]],
    *,
    base: str,
    least_ratios: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Line]:
    """One line for each name in its order: the median of its rates, one a round, and their ratios to the base's."""
    ratios = ratios_to(base, rates)
    return [
        Line(
            name,
            median(of_one),
            median(ratios[name]),
            min(ratios[name]),
            max(ratios[name]),
            least_ratio=(least_ratios or {}).get(name),
            note=(notes or {}).get(name, ""),
        )
        for name, of_one in rates.items()
    ]


def to_json(rows: Sequence[Row], machine: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` writes: machine, options, and the rows with the verdict of each line."""
    return {
        "machine": dict(machine),
        "options": dict(options),
        "rows": [
            {**asdict(row), "lines": [{**asdict(line), "verdict": line.verdict} for line in row.lines]} for row in rows
        ],
    }


def from_json(fields: Mapping[str, Any]) -> list[Row]:
    """The rows that `to_json` wrote."""
    rows = []
    for row in fields["rows"]:
        lines = [Line(**{name: value for name, value in line.items() if name != "verdict"}) for line in row["lines"]]
        rows.append(Row(**{**row, "lines": lines}))
    return rows


def _cells(line: Line) -> list[str]:
    """A line as text: name, figure, ratio, spread of the ratio, target, verdict, note."""
    spread = ""
    if line.ratio_low is not None and line.ratio_high is not None and line.ratio_low != line.ratio_high:
        spread = f"{_short(line.ratio_low)} to {_short(line.ratio_high)}"
    targets = [f"{symbol} {_short(bound)}" for symbol, bound in targets_of(line)]
    return [
        line.name,
        "" if line.value is None else _short(line.value),
        "" if line.ratio is None else _short(line.ratio),
        spread,
        " and ".join(targets),
        line.verdict,
        line.note,
    ]


def _titles(row: Row) -> list[str]:
    return ["", row.unit, "ratio", "of the rounds", "target", "", ""]


def table(row: Row) -> str:
    """A row for a terminal: its title, aligned columns, its remarks."""
    lines = grid(row)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [f"{row.title}   [{row.id}]"]
    for name, *others in lines:
        aligned = [name.ljust(widths[0])]
        aligned += [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        text.append(("  " + "  ".join(aligned)).rstrip())
    text += [f"  {remark}" for remark in row.remarks]
    return "\n".join(text)


def grid(row: Row) -> list[list[str]]:
    """Titles and cells of every line, without the columns that have nothing in any line."""
    lines = [_cells(line) for line in row.lines]
    used = [column for column in range(len(_titles(row))) if column == 0 or any(line[column] for line in lines)]
    return [[line[column] for column in used] for line in [_titles(row), *lines]]


def targets_of(line: Line) -> list[tuple[str, float]]:
    """The line's targets as they are printed: what is compared and how, and the bound."""
    bounds = [
        ("ratio <=", line.most_ratio),
        ("<=", line.most_value),
        ("ratio >=", line.least_ratio),
        (">=", line.least_value),
    ]
    return [(symbol, bound) for symbol, bound in bounds if bound is not None]


def _short(number: float) -> str:
    """Three digits that count, without an exponent."""
    if number == 0:
        return "0"
    magnitude = abs(number)
    decimals = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{number:,.{decimals}f}"
