"""What a person sees of a build: live progress on stderr, and the final report on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.printing import printable
from jobs.sizes import format_number, format_rate, format_seconds, format_size
from pipeline.lanes import BuildReport, LaneProgress, Progress

# Between two lines where the output is no terminal: a log file should not grow with a build's length in seconds.
PLAIN_EVERY_S = 10.0
_WIDE = 100  # columns from which on the table has room for all that is known
_LINES_BESIDE = 10  # of the live view, beside the lanes, on a narrow terminal
_LEGEND = (
    "rates: of the last 10 s. queue: decoded or being decoded, not yet encoded\n"
    "busy: share of the last 10 s that the device spent encoding"
)


class BuildView:
    """Shows a build's progress; a context manager. On a terminal a live view, elsewhere a line now and then."""

    def __init__(self, *, title: str) -> None:
        self._title = title
        self._console = Console(file=sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last_plain = 0.0

    def __enter__(self) -> BuildView:
        if self._live is not None:
            self._live.start()
            starting = "starting Ray and the lanes ..."
            self._live.update(Group(_one_line(self._title, "bold"), Text(starting)), refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show one moment of the build."""
        if self._live is not None:
            console = self._console
            self._live.update(
                render(self._title, progress, width=console.width, most_rows=max(2, console.height - _LINES_BESIDE)),
                refresh=True,
            )
            return
        finished = progress.done + progress.failed >= progress.todo
        if time.monotonic() - self._last_plain > PLAIN_EVERY_S or finished:
            self._last_plain = time.monotonic()
            print(headline(progress), file=sys.stderr, flush=True)


def headline(progress: Progress) -> str:
    """Return the build in one line: the rate is that of the last seconds, and at the end that of the whole."""
    left = progress.todo - progress.done - progress.failed
    now = sum(lane.encoded_per_s for lane in progress.lanes)
    rate = now if left > 0 else progress.done / max(progress.seconds, 1e-9)
    parts = [
        f"{progress.done}/{progress.todo} built",
        f"{progress.skipped} skipped",
        f"{progress.failed} failed",
        format_rate(rate),
        format_size(progress.bytes_written),
        format_seconds(progress.seconds),
    ]
    if left > 0 and progress.seconds_left is not None:
        parts.append(f"about {format_seconds(progress.seconds_left)} left")
    if restarts := sum(lane.restarts for lane in progress.lanes):
        parts.append(f"{restarts} restart{'s' * (restarts != 1)}")
    return ", ".join(parts)


def render(title: str, progress: Progress, *, width: int, most_rows: int) -> Group:
    """Return the live view for a terminal of `width` columns, with at most `most_rows` lanes."""
    # In a grid, because a bar alone does not end its line.
    bar = Table.grid()
    bar_width = max(10, min(60, width - 2))
    bar.add_row(ProgressBar(total=max(progress.todo, 1), completed=progress.done + progress.failed, width=bar_width))
    parts: list[Text | Table] = [
        _one_line(title, "bold"),
        bar,
        Text(headline(progress)),
        Text(),
        _lane_table(progress.lanes, is_wide=width >= _WIDE, most_rows=most_rows),
        Text(_LEGEND, style="dim"),
    ]
    if progress.last_failure is not None:
        failure = progress.last_failure
        parts.append(_one_line(f"last failure: {failure.key} ({failure.stage}): {failure.reason}", "red"))
    return Group(*parts)


def _lane_table(lanes: Sequence[LaneProgress], *, is_wide: bool, most_rows: int) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("lane", "state", "device") if is_wide else ("lane", "state"):
        drawn.add_column(heading, no_wrap=True)
    numbers = ("built", "decode/s", "encode/s", "written/s", "queue", "busy")
    for heading in (*numbers, "decoders", "restarts") if is_wide else numbers:
        drawn.add_column(heading, justify="right", no_wrap=True)
    shown = lanes if len(lanes) <= most_rows else lanes[: most_rows - 1]
    for lane in shown:
        colour = {"running": "green", "recovering": "red"}.get(lane.state, "yellow")
        words = [lane.name, f"[{colour}]{lane.state}[/]", *([lane.device] if is_wide else [])]
        drawn.add_row(*words, *_figures([lane], is_wide=is_wide))
    if rest := lanes[len(shown) :]:
        words = [f"{len(rest)} more", "", *([""] if is_wide else [])]
        drawn.add_row(*words, *_figures(rest, is_wide=is_wide), style="dim")
    return drawn


def _figures(lanes: Sequence[LaneProgress], *, is_wide: bool) -> list[str]:
    """Return the numbers of one lane, or of several together."""
    figures = [
        str(sum(lane.done for lane in lanes)),
        format_number(sum(lane.decoded_per_s for lane in lanes)),
        format_number(sum(lane.encoded_per_s for lane in lanes)),
        format_size(sum(lane.written_per_s for lane in lanes)),
        format_size(sum(lane.queue_bytes for lane in lanes)),
        f"{100 * sum(lane.busy_share for lane in lanes) / len(lanes):.0f}%",
    ]
    if is_wide:
        figures += [str(sum(lane.decoders for lane in lanes)), str(sum(lane.restarts for lane in lanes) or "")]
    return figures


def _one_line(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _shown(text: str) -> str:
    """Return text that may hold names of files, so that neither rich nor a terminal obeys it."""
    return escape(printable(text))


def print_report(report: BuildReport, folder: Path) -> None:
    """Print the final report: failures by name, then the counts; `folder` holds its dead letters."""
    console = Console()
    if report.failed:
        table = Table(title="failed", title_justify="left", title_style="bold red", box=box.SIMPLE, pad_edge=False)
        table.add_column("key", overflow="fold")
        table.add_column("stage")
        table.add_column("error")
        table.add_column("reason", overflow="fold")
        for failure in report.failed:
            table.add_row(_shown(failure.key), failure.stage, failure.error.value, _shown(failure.reason))
        console.print(table)
        console.print(f"to build these again: vlm-cache retry-failed {_shown(quote(str(folder)))}", soft_wrap=True)
    if report.ignored:
        console.print(f"ignored {len(report.ignored)} files:")
        for path, reason in report.ignored[:10]:
            console.print(f"  {_shown(path)}: {_shown(reason)}", soft_wrap=True)
        if len(report.ignored) > 10:
            console.print("  ... (all of them with --json or --report)")
    if report.warning:
        console.print(f"[bold yellow]warning:[/] {_shown(report.warning)}", soft_wrap=True)
    if report.stopped:
        console.print(f"[bold red]stopped early:[/] {_shown(report.stopped)}", soft_wrap=True)
    counts = (
        f"[bold]{report.done}[/] built, [bold]{report.skipped}[/] skipped, "
        f"[bold]{len(report.failed)}[/] failed, [bold]{report.not_started}[/] not started; "
        f"{format_size(report.bytes)} written in {format_seconds(report.seconds)}"
    )
    console.print(counts, soft_wrap=True, highlight=False)
