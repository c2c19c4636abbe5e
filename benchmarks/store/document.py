"""Rewrites the measured part of docs/benchmarks.md, with the figures and the picture that it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.store.plot import draw
from benchmarks.store.report import Row, from_json, grid, targets_of

PAGE = "benchmarks.md"


def marks(target: str) -> tuple[str, str]:
    """The two lines of the page between which the figures of a make target stand."""
    return f"<!-- measured by `make {target}`: begin -->", f"<!-- measured by `make {target}`: end -->"


def record(fields: Mapping[str, Any], docs: Path, *, name: str) -> None:
    """Write the figures of `make bench-<name>` and their picture into `docs`.

    They become `benchmarks-<name>.json` and `.svg`; what stands outside the two marks of the page stays.

    Raises:
        ValueError: the page has not both marks, in their order.
    """
    page, picture = docs / PAGE, f"benchmarks-{name}.svg"
    text = replaced(page.read_text(), section(fields, picture=picture), target=f"bench-{name}")
    draw(from_json(fields), docs / picture)
    (docs / f"benchmarks-{name}.json").write_text(json.dumps(fields, indent=1) + "\n")
    page.write_text(text)


def replaced(page: str, measured: str, *, target: str) -> str:
    """The page with everything between the two marks of a make target replaced.

    Raises:
        ValueError: the page has not both marks, in their order.
    """
    first, last = marks(target)
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{PAGE} needs the lines {first!r} and {last!r}, in this order")
    return f"{before}{first}\n\n{measured}\n\n{last}{after}"


def section(fields: Mapping[str, Any], *, picture: str | None = None) -> str:
    """Machine, picture (a file beside the page) and one table per row, in Markdown."""
    machine = "; ".join(f"{name} {fact}" for name, fact in fields["machine"].items() if name != "date")
    rows = from_json(fields)
    head = f"Measured {fields['machine'].get('date', '')} on: {machine}."
    if fields["options"].get("quick"):
        head += " **With `--quick`: these figures only show that the script runs.**"
    parts = [head]
    if picture is not None:
        parts.append(f"![Ratios of each row on a logarithmic axis; red marks are targets]({picture})")
    return "\n\n".join([*parts, *(_table(row) for row in rows)])


def _table(row: Row) -> str:
    titles, *filled = grid(row)
    lines = [f"### {_capital(row.title)}", ""]
    lines.append(f"| {' | '.join(_escaped(title) for title in titles)} |")
    lines.append(f"|---|{'--:|' * (len(titles) - 1)}")
    for line, texts in zip(row.lines, filled, strict=True):
        name, *rest = [_escaped(text) for text in texts]
        bold = f"**{name}**" if targets_of(line) else name
        lines.append(f"| {' | '.join([bold, *rest])} |")
    if row.remarks:
        lines += ["", " ".join(row.remarks)]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
