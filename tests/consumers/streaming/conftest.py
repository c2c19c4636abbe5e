"""Small models, and what a question's logits are on a stream."""

from __future__ import annotations

import pytest
import torch

from consumers.streaming.qwen_model import load_streaming_model


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """The small model's forwards are too short for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def eager():
    return load_streaming_model("small", attention="eager")


@pytest.fixture(scope="session")
def sdpa():
    return load_streaming_model("small", attention="sdpa")
