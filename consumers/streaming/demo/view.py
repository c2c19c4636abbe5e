"""What a tab shows, as HTML: figures, star frames and answers, with all that a person wrote escaped."""

from __future__ import annotations

from html import escape

from consumers.streaming.demo.memory_plot import memory_plot
from consumers.streaming.demo.records import Exchange, Star, Status

_STARS, _ANSWERS = '<h3 class="vlm-head">Star memory</h3>', '<h3 class="vlm-head">Answers</h3>'
_STATE_TEXT = {
    "empty": "No stream yet",
    "streaming": "Streaming",
    "paused": "Paused",
    "ended": "The video has ended",
    "failed": "Stopped",
}


def format_bytes(nbytes: int) -> str:
    """Return a size as a person reads it: `12.3 MB`, with powers of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}" if nbytes < 1000 * size else f"{nbytes / size:.0f} {unit}"
    return f"{nbytes} B"


def format_time(seconds: float) -> str:
    """Return a time of a stream: `7.5 s`, or `12:07` from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def state_html(status: Status) -> str:
    """Return the stream's state in words, and why it failed."""
    is_held = status.is_asking and status.state == "streaming"
    words = "Paused for a question" if is_held else _STATE_TEXT[status.state]
    if status.chunks:
        words += f", {format_time(status.time_s)}"
    shown = "held" if is_held else status.state
    message = f'<p class="vlm-error" role="alert">{escape(status.message)}</p>' if status.message else ""
    return f'<p class="vlm-state" data-state="{shown}" role="status">{words}</p>{message}'


def status_html(status: Status, *, limit_tokens: int) -> str:
    """Return the state, the KV cache's figures and its size over the chunks."""
    figures = [
        ("chunks", "Chunks", f"{status.chunks:,}", status.chunks, ""),
        ("frames", "Frames", f"{status.frames:,}", status.frames, ""),
        ("tokens", "Tokens", f"{status.tokens:,}", status.tokens, f"at most {limit_tokens:,}"),
        (
            "bytes",
            "KV cache",
            format_bytes(status.cache_bytes),
            status.cache_bytes,
            f"{status.cache_bytes / 1e9:.6f} GB",
        ),
    ]
    if status.evicted_tokens:
        evicted = status.evicted_tokens
        figures.append(("evicted", "Evicted", f"{evicted:,}", evicted, "tokens, oldest first"))
    cells = "".join(
        f'<div><dt>{label}</dt><dd data-figure="{name}" data-value="{value}">{text}</dd><small>{note}</small></div>'
        for name, label, text, value, note in figures
    )
    figures_html = f'<dl class="vlm-figures">{cells}</dl>'
    return f'<h3 class="vlm-head">Stream</h3>{state_html(status)}{figures_html}{memory_plot(status.history)}'


def stars_html(stars: tuple[Star, ...]) -> str:
    """Return the star frames as small pictures, each with its time and the reason why it was kept."""
    if not stars:
        return f'{_STARS}<p class="vlm-hint">Frames at which something changed are kept here, each with the reason.</p>'
    figures = "".join(
        f'<figure><img src="{star.picture}" alt="frame at {format_time(star.time_s)}">'
        f"<figcaption><b>{format_time(star.time_s)}</b> {escape(star.reason)}"
        f"<br><small>importance {star.importance:.2f}</small></figcaption></figure>"
        for star in stars
    )
    return f'{_STARS}<div class="vlm-stars">{figures}</div>'


def answers_html(exchanges: tuple[Exchange, ...]) -> str:
    """Return questions and answers, the latest first."""
    if not exchanges:
        return f'{_ANSWERS}<p class="vlm-hint">Answers appear here. The stream keeps no trace of a question.</p>'
    return _ANSWERS + "".join(_exchange_html(exchange) for exchange in exchanges)


def notice_html(message: str) -> str:
    """Return what a person is told about what was just asked for; nothing for an empty message."""
    return f'<p class="vlm-error" role="alert">{escape(message)}</p>' if message else ""


def _exchange_html(exchange: Exchange) -> str:
    if exchange.error:
        said = f'<p class="vlm-error" role="alert">{escape(exchange.error)}</p>'
    elif exchange.shares:
        said = _shares_html(exchange)
    else:
        text = escape(exchange.text) or ("…" if exchange.outcome == "running" else "(an empty answer)")
        said = f'<p class="vlm-answer" aria-live="polite">{text}</p>'
    notes = [f"asked at {format_time(exchange.time_s)}"]
    if exchange.ttft_s:
        notes.append(f"first token after {exchange.ttft_s:.2f} s")
    if exchange.total_s:
        notes.append(f"{exchange.total_s:.2f} s in all")
    if exchange.outcome == "stopped":
        notes.append("stopped")
    return (
        f'<article class="vlm-exchange" data-outcome="{exchange.outcome}">'
        f"<h4>{escape(exchange.question)}</h4>{said}<small>{' · '.join(notes)}</small></article>"
    )


def _shares_html(exchange: Exchange) -> str:
    rows = "".join(
        f'<li class="{"vlm-best" if choice == exchange.text else ""}" data-share="{share:.6f}">'
        f'<span class="vlm-bar" style="width:{100 * share:.1f}%"></span>'
        f"<span>{escape(choice)}</span><span>{100 * share:.1f} %</span></li>"
        for choice, share in exchange.shares
    )
    return f'<ol class="vlm-shares">{rows}</ol>'
