"""Frames that differ from each other, and what is compared of streams."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

import numpy as np
import torch

QUESTION = "What happens?"


def video(count: int, *, height: int = 56, width: int = 84, seed: int = 0) -> list[np.ndarray]:
    """Frames uint8 [height, width, 3] of coarse noise; 56 x 84 pixels are 2 x 3 tokens."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, height // 14, width // 14, 3), dtype=np.uint8)
    return [frame.repeat(14, axis=0).repeat(14, axis=1) for frame in coarse]


def append_chunks(engine, frames, chunk: int, **how) -> None:
    for start in range(0, len(frames), chunk):
        engine.append_video_chunk(frames[start : start + chunk], **how)


def question_logits(engine, question: str = QUESTION) -> torch.Tensor:
    """The logits [tokens, vocabulary] over a question, on a branch."""
    branch = engine._branch()
    return engine.runner.extend_text(branch.manager, branch.question_ids(question), keep=0)[0]


def bits(engine) -> list[torch.Tensor]:
    """A copy of every key and value."""
    return [tensor.clone() for pair in engine.sequence.manager.tensors() for tensor in pair]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def in_forked_child(does) -> bool:
    """Whether `does`, called in a forked child, returns before anybody's patience ends."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(60)
    try:
        does()
        os._exit(0)
    finally:
        os._exit(1)


@contextmanager
def held_by_another_thread(lock):
    """As if a thread were at work inside `lock`."""
    is_held, may_go = threading.Event(), threading.Event()

    def work():
        with lock:
            is_held.set()
            may_go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    is_held.wait()
    try:
        yield
    finally:
        may_go.set()
        thread.join()
