"""Bytes as people write them, in options and in the environment."""

from __future__ import annotations

import math
import re

# GB = 10^9, GiB = 2^30 bytes; a bare number is bytes.
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = 1024**_power


def parse_size(text: str) -> int:
    """The bytes of `50GiB`, `1.5 TB` or `4096`.

    Raises:
        ValueError: no number, one too large, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    size = float(match[1]) * _UNITS.get(match[2].lower(), math.nan) if match is not None else math.nan
    if not math.isfinite(size):
        raise ValueError(f"{text!r} is no size; write for example 50GiB, 1.5TB or 4096")
    return int(size)
