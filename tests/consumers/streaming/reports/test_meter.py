"""Memory is counted from where a part began, and what an earlier part took does not count."""

from __future__ import annotations

import os

import pytest
import torch

from consumers.streaming.reports.meter import Meter

MIB = 2**20


def test_the_peak_is_what_was_held_at_most_since_the_beginning():
    meter = Meter(torch.device("cpu"))
    meter.begin()
    held, seconds = meter.timed(lambda: torch.ones(64 * MIB))
    assert held.sum() == 64 * MIB
    assert seconds > 0
    del held
    assert meter.peak_bytes() >= 250 * MIB
    assert meter.baseline_bytes > 0
    assert (meter.free_bytes() or 1) > 0


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel lets no peak begin anew")
def test_another_beginning_forgets_the_peak():
    meter = Meter(torch.device("cpu"))
    meter.begin()
    torch.ones(64 * MIB)
    meter.begin()
    assert meter.peak_bytes() < 64 * MIB
