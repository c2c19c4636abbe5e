"""The frame of every HTML page that a command writes: one self-contained file, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       color: light-dark(#1c2330, #dfe5ee); background: light-dark(#fff, #14181f); }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0; }
.note { opacity: .75; }
.warning { border-left: 4px solid #d29000; background: var(--soft); padding: .5rem .8rem; }
figure { margin: .6rem 0; overflow-x: auto; }
svg { max-width: 100%; min-width: 40rem; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
th { vertical-align: bottom; }
td.name { overflow-wrap: anywhere; min-width: 4.5rem; }
td.name:first-child { min-width: 9rem; }
td.name:last-child { min-width: 14rem; }
summary { cursor: pointer; margin: .6rem 0; }
footer { margin: 3rem 0 1rem; opacity: .65; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Section:
    """One headed part of a page. `body` is HTML that its maker has escaped."""

    heading: str
    body: str
    note: str = ""


def page(title: str, *, subtitle: str, warnings: Iterable[str], sections: Iterable[Section]) -> str:
    """Return a whole HTML document that loads nothing."""
    warned = "".join(f'<p class="warning" role="status">{escape(line)}</p>' for line in warnings)
    parts = "".join(
        f"<section><h2>{escape(section.heading)}</h2>"
        + (f'<p class="note">{escape(section.note)}</p>' if section.note else "")
        + f"{section.body}</section>\n"
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="note">{escape(subtitle)}</p>\n{warned}\n{parts}'
        "<footer>written by vlm-cache</footer>\n</body>\n</html>\n"
    )


def figure(svg: str) -> str:
    """Return a plot as a figure; it scrolls by itself on narrow screens."""
    return f"<figure>{svg}</figure>"


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int | Collection[int] = 1) -> str:
    """Return a table of texts; columns at `names`, or the first so many, are texts that may break, others numbers."""
    are_names = range(names) if isinstance(names, int) else names

    def kind(position: int) -> str:
        return "name" if position in are_names else "number"

    head = "".join(
        f'<th scope="col" class="{kind(position)}">{escape(heading)}</th>' for position, heading in enumerate(headings)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind(position)}">{escape(cell)}</td>' for position, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """Return something long that a reader opens."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
