"""Short versions of the fault scripts; `python -m benchmarks.faults` runs them at full length."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from benchmarks.faults.outcome import Load
from cache_store import FeatureStore, StepKey

# Each runs in a process of its own: they fork, patch the operating system's calls and become other users.
SHORT = {
    "kill9": (60, 1),
    "syscalls": (1, 1),
    "full-disk": (200, 1),
    "no-flock": (1, 2),
    "soak": (1, 2),
    "mutations": (1500, 1),
    "pickles": (120, 1),
    "first-use": (3, 1),
    "readers": (1, 1),
    "clock-skew": (1, 1),
    "stale-listings": (1, 1),
    "users": (6, 1),
    "read-only": (1, 1),
    "keys": (400, 1),
    "pack-kill": (60, 1),
    "pack-full-disk": (12, 1),
}


def test_every_script_has_a_short_version():
    from benchmarks.faults.__main__ import SCRIPTS

    assert set(SHORT) == set(SCRIPTS)


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_wrong_or_unnamed(name, tmp_path):
    count, seconds = SHORT[name]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults", name]
    options = ["--count", str(count), "--seconds", str(seconds)]
    if name not in ("users", "read-only"):  # whose users may not enter pytest's folders
        options += ["--folder", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert f"{name}: 0 problems" in done.stdout


def test_mutations_notice_a_reader_that_checks_no_checksum(tmp_path, monkeypatch, caplog):
    from benchmarks.faults.files import mutations
    from cache_store import fast_read, feature_file

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(fast_read.FastReader, "read", lambda *_: None)
    monkeypatch.setattr(feature_file._Payload, "_check", lambda *_: None)
    assert mutations(Load(tmp_path, 300, 1, 0)).problems


def test_a_lost_acknowledgement_is_noticed(tmp_path):
    from benchmarks.faults.outcome import Outcome
    from benchmarks.faults.values import value_of
    from benchmarks.faults.writers import Crowd, check_versions

    with FeatureStore(tmp_path / "store") as store:
        store.put(StepKey("episode_1", 1), value_of(1, 5))
    for acknowledged, is_right in (({1: 5}, True), ({1: 6}, False), ({4: 1}, False)):
        outcome = Outcome()
        check_versions(tmp_path / "store", Crowd(), acknowledged, outcome, "test")
        assert (outcome.problems == []) == is_right
