"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

# Read where torch is imported, in the tests' own processes too. Two test processes with two threads each on two cores
# would spin while they wait for each other: a test of 1 s took 30 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray would start a worker for each CPU of each node ahead of time; tests have many clusters, and use few of those.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


@pytest.fixture(scope="session", autouse=True)
def copies(tmp_path_factory):
    """Where copies of remote features lie, in Ray's processes too: not in the home of who runs the tests."""
    os.environ["VLM_CACHE_TIER"] = str(tmp_path_factory.mktemp("tier"))


@pytest.fixture(scope="session")
def real_media() -> Path:
    """The folder of real media, where it is there; nothing of it is part of the project."""
    folder = os.environ.get("VLM_CACHE_TEST_DATA")
    if not folder:
        pytest.skip("VLM_CACHE_TEST_DATA names no folder of real media")
    return Path(folder)


@pytest.fixture(scope="session")
def local_ray(copies):
    """One Ray cluster of two CPUs for every test that needs no cluster of its own: starting it costs seconds."""
    import ray

    options = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    # Metrics come out after a second instead of ten.
    ray.init(address="local", num_cpus=2, _system_config={"metrics_report_interval_ms": 1000}, **options)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _ordinary_priority():
    """No test leaves a real-time process, as root's AV1 encoder would: whatever it starts later would starve others."""
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
