"""A step encoder whose images tell it what to do: the top-left pixel's red value chooses a fault.

A real spec in every respect but the numbers, so that lanes are tested with real processes, real Ray and a real store.
Decoder processes import this module, and none of them needs torch: it is imported where encoders run.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cache_store import FeatureStore, atomic
from pipeline.encoders.base import StepInput, StepOnDevice
from pipeline.errors import EncoderError
from pipeline.sources import IgnoredFile, ImageFile, StepSample

if TYPE_CHECKING:
    import torch

GOOD = 1
DECODER_RAISES = 10
DECODER_DIES = 11
DECODER_HANGS = 12
DECODER_DIES_ONCE = 13
ENCODER_TELLS_ITS_GPU = 2
ENCODER_RAISES = 20
ENCODER_DIES = 21
ENCODER_DIES_ONCE = 22  # as a preempted node would: the next try succeeds
ENCODER_WAITS_TO_BE_KILLED = 23  # until the test kills it
ENCODER_SPOILED = 24  # every later unit of the process fails too
ENCODER_SPOILED_ONCE = 25
ENCODER_HANGS = 26
ENCODER_OUT_OF_MEMORY = 27


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_first(mark: Path) -> bool:
    """Whether nobody left this mark before; leaves it, with the process id in it."""
    if mark.exists():
        return False
    # The rename makes the process id appear whole to the test that waits for it.
    mark.with_suffix(".new").write_text(str(os.getpid()))
    mark.with_suffix(".new").rename(mark)
    return True


@dataclass(frozen=True)
class FaultyPreprocess:
    """Hands images on, unless their first pixel asks for a fault of the decoder."""

    marks: Path
    most_delay_s: float = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        fault, number = image[0, 0, 0], int(image[0, 0, 1])
        if self.most_delay_s:
            time.sleep(random.random() * self.most_delay_s)
        if fault == DECODER_DIES_ONCE and _is_first(self.marks / f"{number}"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == DECODER_RAISES:
            raise ValueError("this image asked the decoder to raise")
        if fault == DECODER_DIES:
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == DECODER_HANGS:
            threading.Event().wait()
        return image


class FaultyEncoder:
    """Returns the mean colour of each step's first image, [steps, 1, 3], unless its first pixel asks for a fault.

    With `mixes` the last value is the sum of the numbers of all steps of the forward: the bits tell who shared it.
    """

    def __init__(self, marks: Path, most_delay_s: float = 0.0, *, mixes: bool = False) -> None:
        self._marks, self._most_delay_s, self._mixes = marks, most_delay_s, mixes
        self._is_spoiled = False

    def encode(self, step: StepInput) -> torch.Tensor:
        import torch

        return self.forward([StepOnDevice([torch.tensor(image) for image in step.images], step.instruction)])

    def forward(self, steps: Sequence[StepOnDevice], *, at_most: int | None = None) -> torch.Tensor:
        import torch

        numbers = [int(step.images[0][0, 0, 1]) for step in steps]
        with open(self._marks / "batches", "a") as file:
            file.write(" ".join(map(str, numbers)) + "\n")
        features = torch.cat([self._forward_one(step.images[0].numpy()) for step in steps])
        if self._mixes:
            features[..., 2] = sum(numbers)
        return features

    def _forward_one(self, image: np.ndarray) -> torch.Tensor:
        import torch

        fault, number = image[0, 0, 0], int(image[0, 0, 1])
        with open(self._marks / "forwards", "a") as file:
            file.write(f"{number}\n")
        if self._most_delay_s:
            time.sleep(random.random() * self._most_delay_s)
        if fault == ENCODER_SPOILED or (fault == ENCODER_SPOILED_ONCE and _is_first(self._marks / f"{number}")):
            self._is_spoiled = True
        if self._is_spoiled:
            raise RuntimeError("CUDA error: device-side assert triggered")
        if fault == ENCODER_HANGS:
            threading.Event().wait()
        if fault == ENCODER_OUT_OF_MEMORY:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")
        if fault == ENCODER_TELLS_ITS_GPU:
            (self._marks / f"gpu {os.environ['CUDA_VISIBLE_DEVICES']}").touch()
            # Wait for the other lane, or the first one to come up would do all the work.
            while len(list(self._marks.glob("gpu *"))) < 2:
                time.sleep(0.01)
        if fault == ENCODER_RAISES:
            raise ValueError("this image asked the encoder to raise")
        if fault == ENCODER_DIES:
            _die()
        if fault in (ENCODER_DIES_ONCE, ENCODER_WAITS_TO_BE_KILLED) and _is_first(self._marks / f"{number}"):
            if fault == ENCODER_DIES_ONCE:
                _die()
            threading.Event().wait()
        return torch.from_numpy(image.astype(np.float32).mean(axis=(0, 1))).to(torch.float16).reshape(1, 1, 3)


@dataclass(frozen=True)
class FaultySpec:
    """The spec of `FaultyEncoder`."""

    marks: Path  # where faults that happen once leave their mark
    loads: bool = True
    most_delay_s: float = 0.0  # of each decode and each forward, at random
    files_on_disk: int | None = None  # after so many files of one process the disk is full
    dies_before_answer: bool = False  # once, when its first feature is published
    has_rival: bool = False  # another build publishes every other step just before this one
    mixes: bool = False  # as in `FaultyEncoder`
    family: str = "faulty"

    @property
    def preprocess(self) -> FaultyPreprocess:
        return FaultyPreprocess(self.marks, self.most_delay_s)

    def recipe(self) -> Mapping[str, Any]:
        return {"family": self.family, "dtype": "float16", "weights": "none"}

    def feature_bytes(self) -> int:
        return 6

    def load(self, device: str) -> FaultyEncoder:
        if not self.loads:
            raise EncoderError("this model never loads")
        if self.files_on_disk is not None:
            _fill_the_disk_after(self.files_on_disk)
        if self.dies_before_answer and _is_first(self.marks / "died"):
            _die_once_published()
        if self.has_rival:
            _let_another_build_publish_odd_steps()
        return FaultyEncoder(self.marks, self.most_delay_s, mixes=self.mixes)


def _die_once_published() -> None:
    put = FeatureStore.put

    def put_and_die(self, *args, **options):
        put(self, *args, **options)
        _die()

    FeatureStore.put = put_and_die


def _let_another_build_publish_odd_steps() -> None:
    from pipeline.encode_unit import put_item
    from pipeline.lanes.writer import Writer

    published = Writer._published

    def published_late(self, group):
        for key, value, recipe, provenance in (put_item(waiting.encoded, self._task) for waiting in group):
            if key.vlm_idx % 2:
                FeatureStore(self._task.store_root).put(key, value, recipe=recipe, provenance=provenance)
        return published(self, group)

    Writer._published = published_late


def _fill_the_disk_after(files: int) -> None:
    """Let this process write `files` features, and then find no space."""
    left, write = [files], atomic._write_all

    def write_while_there_is_space(descriptor, buffers):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, buffers)

    atomic._write_all = write_while_there_is_space


def in_order(digests: dict[str, str]) -> list[tuple[str, str]]:
    """Return names and digests by the steps' numbers: a shorter undisturbed build gives the first of them."""
    return sorted(digests.items(), key=lambda pair: int(Path(pair[0]).stem.rpartition("vlm")[2]))


class FaultySource:
    """One step for each fault named, in order: image k has the fault in its red value and k in its green value.

    All steps are one episode's, or each `episode_steps` of them are; images have `side` by `side` pixels.
    """

    def __init__(self, folder: Path, faults: list[int], *, episode_steps: int = 10**9, side: int = 8) -> None:
        self._samples = []
        folder.mkdir(parents=True, exist_ok=True)
        for number, fault in enumerate(faults):
            pixels = np.full((side, side, 3), number % 256, np.uint8)
            pixels[0, 0] = (fault, number % 256, 0)
            path = folder / f"{number:05d}.png"
            Image.fromarray(pixels).save(path)
            episode = f"episode_{1 + number // episode_steps}"
            self._samples.append(StepSample(episode, number, (ImageFile("front", path),), "pick the block"))

    def __iter__(self):
        return iter(self._samples)

    def ignored(self) -> list[IgnoredFile]:
        return []
