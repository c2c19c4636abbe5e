"""The plan: samples minus what the store holds, in the source's order, cut into shards.

Of a planned sample five bytes are kept, so that a plan of a million units costs five megabytes. The source is read
again for the build itself: a mark of each sample tells whether it still gives what was planned.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, cast
from zlib import crc32

from cache_store import FeatureKey, FeatureStore, InvalidKey, Lookup, StepKey, VideoKey, recipe_fingerprint
from pipeline.encoders.base import EncoderSpec, Json, SpecOfDecoders, StepEncoderSpec, VideoEncoderSpec
from pipeline.errors import BuildRefused, SourceChanged
from pipeline.recipe import StoreDtype, step_recipe, video_recipe
from pipeline.sources import FETCH_LIMIT_BYTES, Sample, Source, StepSample, VideoFrame, VideoSample
from pipeline.vision import PartialFrames, SamplingRule

SHARD_UNITS = 64
_PROTECT_AT_ONCE = 4096  # names in one line of a journal


@dataclass(frozen=True)
class BuildTask:
    """What one build was asked to do. Picklable: every process of the build holds the same copy."""

    spec: EncoderSpec
    store_root: str
    run_id: str | None  # None: what the build writes may be evicted while it runs
    nframe: int = 128
    sampling: SamplingRule = field(default_factory=lambda: SamplingRule.parse("source"))
    partial_frames: PartialFrames = "refuse"  # "allow": a damaged video gives the frames that it still holds
    store_dtype: StoreDtype | None = None  # of videos; None: as the tower gives them
    fetch_limit_bytes: int = FETCH_LIMIT_BYTES  # of media behind URLs, in each decoder process; changes no number
    # Building a recipe for each of a million steps of a few instructions would cost more than asking the store.
    _recipes: dict[tuple[object, ...], dict[str, Json]] = field(default_factory=dict, compare=False, repr=False)

    def key(self, sample: Sample) -> FeatureKey:
        """Return the store's key of a sample."""
        if isinstance(sample, VideoSample):
            signature = cast(VideoEncoderSpec, self.spec).model_signature
            return VideoKey(sample.dataset, sample.video_id, self.nframe, signature)
        return StepKey(sample.dataset, sample.vlm_idx)

    def recipe(self, sample: Sample) -> dict[str, Json]:
        """Return the recipe of a sample's feature. The caller must not change it: equal samples share one object."""
        asked: tuple[object, ...] = ()
        if isinstance(sample, StepSample):
            views = tuple(image.view for image in sample.images)
            asked = (sample.instruction, views, any(isinstance(image, VideoFrame) for image in sample.images))
        if asked not in self._recipes:
            self._recipes[asked] = self._new_recipe(sample, *asked)
        return self._recipes[asked]

    def for_decoders(self) -> BuildTask:
        """Return the task as decoder processes take it, which cannot load the model."""
        return replace(self, spec=cast(EncoderSpec, SpecOfDecoders.of(self.spec)))

    def shared_recipe(self) -> dict[str, Json]:
        """Return what the recipes of all samples have in common."""
        asked: dict[str, Json] = {"nframe": self.nframe, "sampling": self.sampling.name}
        if self.store_dtype is not None:
            asked["store_dtype"] = self.store_dtype
        return {"encoder": dict(self.spec.recipe()), "partial_frames": self.partial_frames, **asked}

    def _new_recipe(self, sample: Sample, *asked: Any) -> dict[str, Json]:
        if isinstance(sample, VideoSample):
            spec = cast(VideoEncoderSpec, self.spec)
            return video_recipe(
                spec,
                nframe=self.nframe,
                sampling=self.sampling.name,
                partial_frames=self.partial_frames,
                store_dtype=self.store_dtype,
            )
        instruction, views, from_video = asked
        spec_of_steps = cast(StepEncoderSpec, self.spec)
        return step_recipe(spec_of_steps, instruction=instruction, views=views, from_video=from_video)


@dataclass(frozen=True)
class Unit:
    """One sample with its name in reports: the unit of work, of retry, of commit and of blame."""

    name: str  # the video id, or `<episode>_vlm<idx>`
    key: FeatureKey
    sample: Sample

    @property
    def group(self) -> str:
        """What must stay in one shard: an episode's steps; a video stands alone."""
        return self.sample.dataset if isinstance(self.sample, StepSample) else self.name

    @property
    def file(self) -> object:
        """What clips of one file have in common, and nothing else has."""
        sample = self.sample
        if isinstance(sample, VideoSample) and (sample.start_s is not None or sample.end_s is not None):
            return sample.path, sample.fps
        return self.name

    @property
    def batch(self) -> object:
        """What the steps of one forward have in common; None where the unit has a forward of its own."""
        sample = self.sample
        if isinstance(sample, StepSample) and len(sample.together) > 1:
            return sample.dataset, sample.together[0].vlm_idx
        return None

    def by_itself(self) -> Unit:
        """Return a step without those that share its forward."""
        step = replace(cast(StepSample, self.sample), together=())
        return replace(self, sample=replace(step, together=(step,)))


def _unit(sample: Sample, task: BuildTask) -> Unit:
    return Unit(unit_name(sample), task.key(sample), sample)


@dataclass(frozen=True)
class Shard:
    """Neighbouring units that a lane pulls at once, and that one of several builds claims."""

    name: str  # the same in every build of the same plan
    units: list[Unit]


class Decision(IntEnum):
    """What the plan says of one sample."""

    TODO = 0
    SKIP = 1  # the store has it
    FAILED = 2  # the source says why it cannot be built


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done with each sample of a source, five bytes a sample."""

    source: Source
    task: BuildTask
    overwrite: bool
    decisions: bytearray  # a `Decision` for each sample, in the source's order
    marks: array[int]  # of each sample, so that the source can be read again
    problems: list[tuple[str, str]]  # (name, reason) of the samples that the source calls impossible

    @property
    def todo(self) -> int:
        """How many units are to be built."""
        return self.decisions.count(Decision.TODO)

    @property
    def skipped(self) -> int:
        """How many samples the store already holds."""
        return self.decisions.count(Decision.SKIP)

    def wanted(self) -> Iterator[tuple[FeatureKey, dict[str, Json]]]:
        """Yield key and recipe of every sample that can be built or is there, in the source's order."""
        for sample, decision in self.planned():
            if decision != Decision.FAILED:
                yield self.task.key(sample), self.task.recipe(sample)

    def planned(self) -> Iterator[tuple[Sample, int]]:
        """Yield each sample and its `Decision`, in the source's order. What came behind the last one is left out.

        Raises:
            SourceChanged: the source gives other samples than when it was planned.
        """
        mark, places = _marker(), iter(range(len(self.decisions)))
        for sample, place in zip(self.source, places, strict=False):
            if mark(sample) != self.marks[place]:
                raise SourceChanged(f"{unit_name(sample)} is not what was planned here; start the build again")
            # What stands for an episode that cannot be read has the first step's mark.
            if sample.problem is not None and self.decisions[place] != Decision.FAILED:
                raise SourceChanged(f"{sample.problem}: it could be read when it was planned; start the build again")
            yield sample, self.decisions[place]
        if next(places, None) is not None:
            raise SourceChanged("fewer samples are there than were planned; start the build again")

    def units(self) -> Iterator[Unit]:
        """Yield the units to build, lazily and in the source's order."""
        for shard in self.shards():
            yield from shard.units

    def shards(self, *, size: int = SHARD_UNITS) -> Iterator[Shard]:
        """Yield the units to build in shards, lazily; shards are cut and named by all samples, whatever is done.

        Raises:
            SourceChanged: as `planned`.
        """
        decisions: deque[int] = deque()

        def units() -> Iterator[Unit]:
            for sample, decision in self.planned():
                decisions.append(decision)
                yield _unit(sample, self.task)

        for whole in shards(units(), size=size):
            wanted = [unit for unit in whole if decisions.popleft() == Decision.TODO]
            if wanted:
                yield Shard(self._shard_name(whole), wanted)

    def _shard_name(self, whole: list[Unit]) -> str:
        first, last = whole[0], whole[-1]
        recipe = recipe_fingerprint(self.task.recipe(first.sample))
        facts = (recipe, first.sample.dataset, first.name, last.sample.dataset, last.name, str(len(whole)))
        return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def plan_build(source: Source, task: BuildTask, store: Lookup, *, overwrite: bool) -> Plan:
    """Decide for every sample of the source whether it is to be built.

    Skipped samples are marked as used by this run, if it has an id and a store to write to, so that the size limit
    cannot evict them while it lasts.

    Raises:
        BuildRefused: the store holds a sample under another recipe, or another video under its id, and `overwrite` is
            not set.
    """
    plan = Plan(source, task, overwrite, bytearray(), array("I"), [])
    kept: list[FeatureKey] = []
    waiting: deque[tuple[int, Sample]] = deque()  # asked about, their states still to come
    problem_of_name, mark = _problems_of_names(task, store), _marker()

    def asked() -> Iterator[tuple[FeatureKey, dict[str, Json]]]:
        for sample in source:
            problem = sample.problem or problem_of_name(sample)
            plan.decisions.append(Decision.TODO if problem is None else Decision.FAILED)
            plan.marks.append(mark(sample))
            if problem is None:
                waiting.append((len(plan.decisions) - 1, sample))
                yield task.key(sample), task.recipe(sample)
            else:
                plan.problems.append((unit_name(sample), problem))

    states = ("missing" for _ in asked()) if overwrite else store.states(asked())
    for state in states:
        place, sample = waiting.popleft()
        if state == "stale":
            _refuse_another_recipe(sample, task, store)
        if state != "present":
            continue
        if isinstance(sample, VideoSample) and sample.has_bare_stem:
            _refuse_another_video(sample, task, store)
        plan.decisions[place] = Decision.SKIP
        if task.run_id is not None and isinstance(store, FeatureStore):
            kept.append(task.key(sample))
            if len(kept) == _PROTECT_AT_ONCE or isinstance(sample, VideoSample):
                store.protect(kept, recipe=task.recipe(sample))
                kept.clear()
    if kept and isinstance(store, FeatureStore):
        store.protect(kept)
    return plan


def _marker() -> Callable[[Sample], int]:
    """Return what gives a sample's mark: four bytes of its name, an episode's digested once for all of its steps."""
    last, digest = "", 0

    def mark(sample: Sample) -> int:
        nonlocal last, digest
        if isinstance(sample, VideoSample):
            return _crc(sample.video_id)
        if sample.dataset is not last:
            last, digest = sample.dataset, _crc(sample.dataset)
        return (digest + sample.vlm_idx) % 2**32

    return mark


def _crc(name: str) -> int:
    return crc32(name.encode("utf-8", "surrogatepass"))


def _problems_of_names(task: BuildTask, store: Lookup) -> Callable[[Sample], str | None]:
    """Return `_problem_of_name`, asked once for each episode, whose steps differ by a number alone."""
    last: tuple[str, str | None] | None = None

    def problem(sample: Sample) -> str | None:
        nonlocal last
        if not isinstance(sample, StepSample):
            return _problem_of_name(sample, task, store)
        if last is None or last[0] != sample.dataset:
            last = sample.dataset, _problem_of_name(sample, task, store)
        return last[1]

    return problem


def _problem_of_name(sample: Sample, task: BuildTask, store: Lookup) -> str | None:
    """Return why the name of an episode or a video cannot be stored: one such name must not stop the others.

    Raises:
        InvalidKey: the name of a whole video data set is of that kind.
    """
    try:
        store.path_of(task.key(sample))
    except InvalidKey as exc:
        if isinstance(sample, VideoSample):
            store.path_of(task.key(replace(sample, video_id="video")))
        return str(exc)
    return None


def _refuse_another_recipe(sample: Sample, task: BuildTask, store: Lookup) -> None:
    key = task.key(sample)
    # Another recipe's video lies in another folder, so both can be kept; a step has one name for all recipes.
    mismatch = store.mismatch_of(key, recipe=task.recipe(sample)) if isinstance(key, StepKey) else None
    if mismatch is not None:
        raise BuildRefused(
            f"{unit_name(sample)}: {mismatch}; pass --overwrite to build it again, or another --store"
        ) from mismatch


def _refuse_another_video(sample: VideoSample, task: BuildTask, store: Lookup) -> None:
    built_from = store.video_path_of(cast(VideoKey, task.key(sample)), recipe=task.recipe(sample))
    if built_from not in (None, sample.relative_path):
        raise BuildRefused(
            f"{sample.relative_path} has the id {sample.video_id!r}, under which the store has the feature of "
            f"{built_from}: it was built when no other video had its stem; pass --overwrite to build all of them "
            "again, or another --dataset or --store"
        )


def unit_name(sample: Sample) -> str:
    """Return a sample's name in reports."""
    if isinstance(sample, VideoSample):
        return sample.video_id
    return f"{sample.dataset}_vlm{sample.vlm_idx}"


def shards(units: Iterable[Unit], *, size: int = SHARD_UNITS) -> Iterator[list[Unit]]:
    """Cut units into contiguous shards of about `size`; units of one group (an episode's steps) are never parted.

    A shard is closed at the first group border after `size` units, so an episode of more steps makes a longer shard.
    """
    shard: list[Unit] = []
    for unit in units:
        if len(shard) >= size and unit.group != shard[-1].group:
            yield shard
            shard = []
        shard.append(unit)
    if shard:
        yield shard
