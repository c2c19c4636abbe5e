"""What a person sees of a build: live progress on stderr, and the final report on stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.sizes import format_seconds, format_size
from pipeline.lanes import BuildReport, Progress

# Between two lines where the output is no terminal: a log file should not grow with a build's length in seconds.
PLAIN_EVERY_S = 10.0


class BuildView:
    """Shows a build's progress; a context manager. On a terminal a live view, elsewhere a line now and then."""

    def __init__(self, *, title: str) -> None:
        self._title = title
        self._console = Console(file=sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last_plain = 0.0
        self._failures_told = 0

    def __enter__(self) -> BuildView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show one moment of the build."""
        if self._live is not None:
            self._live.update(_render(self._title, progress), refresh=True)
            return
        finished = progress.done + progress.failed >= progress.todo
        if time.monotonic() - self._last_plain > PLAIN_EVERY_S or finished:
            self._last_plain = time.monotonic()
            print(_headline(progress), file=sys.stderr, flush=True)


def _headline(progress: Progress) -> str:
    rate = progress.done / progress.seconds if progress.seconds else 0.0
    parts = [
        f"{progress.done}/{progress.todo} built",
        f"{progress.skipped} skipped",
        f"{progress.failed} failed",
    ]
    parts += [f"{rate:.1f}/s", format_size(progress.bytes_written), format_seconds(progress.seconds)]
    left = progress.todo - progress.done - progress.failed
    if rate and left > 0:
        parts.append(f"about {format_seconds(left / rate)} left")
    return ", ".join(parts)


def _render(title: str, progress: Progress) -> Group:
    lanes = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    lanes.add_column("lane")
    lanes.add_column("state")
    lanes.add_column("device")
    for heading in ("built", "waiting", "in flight", "restarts"):
        lanes.add_column(heading, justify="right")
    for lane in progress.lanes:
        colour = {"running": "green", "recovering": "red"}.get(lane.state, "yellow")
        lanes.add_row(
            lane.name,
            f"[{colour}]{lane.state}[/]",
            lane.device,
            str(lane.done),
            str(lane.queued),
            format_size(lane.bytes_in_flight),
            str(lane.restarts or ""),
        )
    # In a grid, because a bar alone does not end its line.
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(progress.todo, 1), completed=progress.done + progress.failed, width=60))
    parts: list[Text | Table] = [
        Text(title, style="bold"),
        bar,
        Text(_headline(progress)),
        lanes,
    ]
    if progress.last_failure is not None:
        failure = progress.last_failure
        parts.append(Text(f"last failure: {failure.key} ({failure.stage}): {failure.reason}", style="red"))
    return Group(*parts)


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
            table.add_row(escape(failure.key), failure.stage, failure.error.value, escape(failure.reason))
        console.print(table)
        console.print(f"to build these again: vlm-cache retry-failed {escape(str(folder))}", soft_wrap=True)
    if report.ignored:
        console.print(f"ignored {len(report.ignored)} files:")
        for path, reason in report.ignored[:10]:
            console.print(f"  {escape(path)}: {escape(reason)}", soft_wrap=True)
        if len(report.ignored) > 10:
            console.print("  ... (all of them with --json or --report)")
    if report.warning:
        console.print(f"[bold yellow]warning:[/] {escape(report.warning)}", soft_wrap=True)
    if report.stopped:
        console.print(f"[bold red]stopped early:[/] {escape(report.stopped)}", soft_wrap=True)
    counts = (
        f"[bold]{report.done}[/] built, [bold]{report.skipped}[/] skipped, "
        f"[bold]{len(report.failed)}[/] failed, [bold]{report.not_started}[/] not started; "
        f"{format_size(report.bytes)} written in {format_seconds(report.seconds)}"
    )
    console.print(counts, soft_wrap=True, highlight=False)
