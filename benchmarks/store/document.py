"""Rewrites the measured part of docs/benchmarks.md, with the figures and the picture that it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.store.plot import draw
from benchmarks.store.report import Row, from_json, grid

PAGE = "benchmarks.md"
FIGURES = "benchmarks-store.json"
PICTURE = "benchmarks-store.svg"
BEGIN = "<!-- measured by `make bench-store`: begin -->"
END = "<!-- measured by `make bench-store`: end -->"


def record(fields: Mapping[str, Any], docs: Path) -> None:
    """Write the figures of a run into `docs`; what stands outside the two marks of the page stays.

    Raises:
        ValueError: the page has not both marks, in their order.
    """
    page = docs / PAGE
    text = replaced(page.read_text(), section(fields))
    draw(from_json(fields), docs / PICTURE)
    (docs / FIGURES).write_text(json.dumps(fields, indent=1) + "\n")
    page.write_text(text)


def replaced(page: str, measured: str) -> str:
    """The page with everything between its two marks replaced.

    Raises:
        ValueError: the page has not both marks, in their order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} needs the lines {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def section(fields: Mapping[str, Any]) -> str:
    """Machine, picture and one table per row, in Markdown."""
    machine = "; ".join(f"{name} {fact}" for name, fact in fields["machine"].items() if name != "date")
    rows = from_json(fields)
    head = f"Measured {fields['machine'].get('date', '')} on: {machine}."
    if fields["options"].get("quick"):
        head += " **With `--quick`: these figures only show that the script runs.**"
    picture = f"![Ratios of each row on a logarithmic axis; red marks are targets]({PICTURE})"
    return "\n\n".join([head, picture, *(_table(row) for row in rows)])


def _table(row: Row) -> str:
    titles, *filled = grid(row)
    lines = [f"### {_capital(row.title)}", ""]
    lines.append(f"| {' | '.join(_escaped(title) for title in titles)} |")
    lines.append(f"|---|{'--:|' * (len(titles) - 1)}")
    for line, texts in zip(row.lines, filled, strict=True):
        name, *rest = [_escaped(text) for text in texts]
        bold = f"**{name}**" if line.most_ratio is not None or line.most_value is not None else name
        lines.append(f"| {' | '.join([bold, *rest])} |")
    if row.remarks:
        lines += ["", " ".join(row.remarks)]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
