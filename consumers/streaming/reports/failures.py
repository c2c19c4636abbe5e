"""What ends one part of a report, and not what was measured before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consumers.streaming.errors import StreamError
from pipeline.errors import MediaError
from pipeline.failures import is_out_of_memory


def failure_of(part: str, exc: Exception) -> str:
    """Return the line of `Report.failures` for a part that ended before its time.

    Memory or context ran out, the stream gave no answer, or a frame is damaged.

    Raises:
        Exception: `exc` itself, if it is anything else: a fault of ours.
    """
    if not isinstance(exc, StreamError | MediaError) and not is_out_of_memory(exc):
        raise exc
    return ": ".join([part, type(exc).__name__, *str(exc).splitlines()[:1]])


@contextmanager
def named(part: str, failures: list[str]) -> Iterator[None]:
    """Add to `failures` what ends a part before its time; see `failure_of`."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - `failure_of` raises what is none
        failures.append(failure_of(part, exc))
