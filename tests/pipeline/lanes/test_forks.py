"""A process forked from one that is connected to Ray, as a DataLoader's worker is, takes none of its answers."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import Counter

import pytest

import pipeline.lanes.cluster  # noqa: F401  what is tested: it registers what a forked process does first


def report_an_exception():
    """As `multiprocessing.resource_sharer` does where the process that wanted a tensor has gone."""
    try:
        raise ConnectionResetError("gone")
    except ConnectionResetError:
        sys.excepthook(*sys.exc_info())


@pytest.mark.parametrize("in_child", [gc.collect, report_an_exception])
def test_a_forked_process_leaves_the_connection_to_ray_alone(local_ray, in_child):
    import ray

    handle = ray.remote(num_cpus=0)(Counter).remote()
    ray.get(handle.total.remote())
    gc.collect()
    gc.disable()  # here; what it would do is what the forked process must not do
    try:
        left = [handle]
        left.append(left)
        del handle, left
        child = os.fork()
        if not child:
            try:
                in_child()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        # A call that waits for ever cannot be interrupted: in a thread it is left behind.
        found = []
        asks = threading.Thread(target=lambda: found.extend(ray.cluster_resources() for _ in range(3)), daemon=True)
        asks.start()
        asks.join(60)
    finally:
        gc.enable()
    assert [resources["CPU"] for resources in found] == [2, 2, 2]
