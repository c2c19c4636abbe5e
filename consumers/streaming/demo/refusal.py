"""Errors as the person at the page reads them."""

from __future__ import annotations

from consumers.streaming.errors import ContextTooLong, StreamError
from pipeline.errors import MediaError
from pipeline.failures import is_out_of_memory


class DemoRefused(Exception):
    """What was asked for cannot be done now; the message is for the person at the page."""


def told(error: Exception) -> str | None:
    """Return what the page says of an error that a video, a question or a device brought about.

    None for any other, which is a fault of ours and belongs into the log.
    """
    if is_out_of_memory(error):
        return "Memory ran out; reset, and take smaller chunks or a shorter video."
    if isinstance(error, ContextTooLong):
        # Its own words name what only callers of the engine have.
        is_chunk = "chunk" in error.what
        advice = "take smaller chunks, or more --max-cache-tokens" if is_chunk else "ask something shorter, or reset"
        return f"{error.what}: {error.tokens} tokens, and {error.limit} fit; {advice}."
    if isinstance(error, (DemoRefused, StreamError, MediaError, ValueError, OSError)):
        return str(error)
    return None
