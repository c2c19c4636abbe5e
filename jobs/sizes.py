"""Bytes and durations as people write and read them."""

from __future__ import annotations

import argparse
import re

from cache_store import sizes

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(text: str) -> int:
    """Return the bytes of `50GiB`, `1.5 TB` or `4096`.

    Raises:
        argparse.ArgumentTypeError: no number, or an unknown unit.
    """
    try:
        return sizes.parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def parse_age(text: str) -> float:
    """Return the seconds of `30d`, `12h`, `90m` or `45s`.

    Raises:
        argparse.ArgumentTypeError: no number, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write for example 30d, 12h or 90m")
    return float(match[1]) * _SECONDS[match[2]]


def positive_int(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def whole_number(text: str) -> int:
    """Return a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def format_size(num_bytes: float) -> str:
    """Return bytes with a binary unit and three significant digits: `144 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1000 or unit == "TiB":
            break
        num_bytes /= 1024
    if unit == "B" or num_bytes >= 100:
        return f"{num_bytes:.0f} {unit}"
    return f"{num_bytes:.{2 if num_bytes < 10 else 1}f} {unit}"


def format_number(number: float) -> str:
    """Return a number of at least 0 with about three digits: `1,234`, `56.7`, `0.12`."""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def format_rate(per_s: float) -> str:
    """Return a rate in the unit of time in which it is no small fraction: `56.7/s`, `1.20/min`, `3.00/h`."""
    for unit_s, unit in ((1, "s"), (60, "min")):
        if per_s * unit_s >= 0.5 or per_s == 0:
            return f"{format_number(per_s * unit_s)}/{unit}"
    return f"{format_number(per_s * 3600)}/h"


def format_seconds(seconds: float) -> str:
    """Return a duration as `1h 02m`, `3m 20s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def format_age(seconds: float) -> str:
    """Return how long something is ago in one unit: `now`, `42s`, `5m`, `3h`, `12d`, `2.5y`."""
    for limit, unit_s, letter in ((60, 1, "s"), (3600, 60, "m"), (2 * 86400, 3600, "h"), (730 * 86400, 86400, "d")):
        if seconds < limit:
            return "now" if seconds < 1 else f"{int(seconds / unit_s)}{letter}"
    return f"{seconds / (365.25 * 86400):.1f}y"


def positive_seconds(text: str) -> float:
    """Return a number of seconds above 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    return _positive(text, below=1e6, what="number of seconds")


def positive_rate(text: str) -> float:
    """Return a number above 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    return _positive(text, below=1e9, what="number")


def _positive(text: str, *, below: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < below:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what} above 0")
    return number


def fingerprint_prefix(text: str) -> str:
    """Return the first 8 to 64 hex digits of a recipe's fingerprint, in lower case.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the first 8 to 64 hex digits of a recipe's fingerprint")
    return text.lower()
