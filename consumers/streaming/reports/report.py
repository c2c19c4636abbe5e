"""What a report on streaming says, as values: facts, tables, plots, and what did not come out as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

Cell: TypeAlias = "bool | int | float | str | None"


@dataclass(frozen=True)
class Table:
    """Rows of figures, whose names end in their unit: `_s`, `_bytes`, `_per_s`; a row may lack some."""

    heading: str
    rows: Sequence[Mapping[str, Cell]]
    note: str = ""

    @property
    def names(self) -> list[str]:
        """The names of all rows, in their order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def is_text(self, name: str) -> bool:
        """Whether that column holds text."""
        return any(isinstance(row.get(name), str) for row in self.rows)


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis, each a list of points (x, y)."""

    title: str
    axis: str
    unit: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Bars:
    """One bar for each label, from the top down."""

    title: str
    unit: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """One report. `warnings` are figures to look at; `failures` are parts that gave none, or promises not kept."""

    name: str  # as the command line calls it
    title: str
    facts: Mapping[str, Cell]
    tables: Sequence[Table]
    plots: Sequence[Curves | Bars] = ()
    warnings: Sequence[str] = field(default_factory=list)
    failures: Sequence[str] = field(default_factory=list)

    def without_empty_parts(self) -> Report:
        """Return it without tables and plots of which nothing was measured; `failures` say why."""
        return replace(
            self,
            tables=[table for table in self.tables if table.rows],
            plots=[
                plot for plot in self.plots if (plot.values if isinstance(plot, Bars) else any(plot.series.values()))
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Return `{report, facts, tables: {heading: rows}, warnings, failures}`."""
        return {
            "report": self.name,
            "facts": dict(self.facts),
            "tables": {table.heading: [dict(row) for row in table.rows] for table in self.tables},
            "plots": [asdict(plot) for plot in self.plots],
            "warnings": list(self.warnings),
            "failures": list(self.failures),
        }
