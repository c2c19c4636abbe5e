"""A small store of two episodes, one by a recipe, and a way to run commands on it."""

from __future__ import annotations

import pytest
import torch

from cache_store import FeatureStore, StepKey
from jobs.__main__ import main


@pytest.fixture
def root(tmp_path):
    with FeatureStore(tmp_path / "store", limit_bytes=10**9) as store:
        for number in range(4):
            store.put(StepKey("episode_1", number), torch.full((1, 1, 8), number), recipe={"encoder": {"family": "x"}})
        store.put(StepKey("episode_2", 0), torch.zeros(1, 1, 8))
    return tmp_path / "store"


@pytest.fixture
def run(capsys, root):
    """Run a command over the store; returns its status, what it printed, and what it noted on stderr."""

    def run_one(command, *arguments):
        status = main([command, "--store", str(root), *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_one
