"""Looks for every feature that samples need, and at their episodes' arrays, before a training begins."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_store import ReadOnlyStore
from consumers.training.coverage import first_recipes
from consumers.training.feature_reader import Recipe
from pipeline.errors import MediaError

if TYPE_CHECKING:
    from consumers.training.vla_dataset import UnifiedVLADataset

# Features of one build differ in the same way from what is asked for, and each reason takes a read: so many are told.
_MOST_REASONS = 20


@dataclass(frozen=True)
class Problem:
    """A feature or an episode that training would stumble over."""

    name: str  # `<episode>_vlm<idx>`, or an episode's folder
    reason: str


class CacheIncomplete(LookupError):
    """What `Preflight.require` raises; `report` has every problem."""

    def __init__(self, report: Preflight) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(self.report)


@dataclass(frozen=True)
class Preflight:
    """What a look at everything found: `needed` steps, and what is wrong with some."""

    needed: int
    missing: tuple[Problem, ...]  # no feature is there
    mismatched: tuple[Problem, ...]  # made with another instruction, model or view than the data set's others
    unreadable: tuple[Problem, ...]  # episodes whose arrays are damaged, of wrong shapes, or not finite

    @property
    def is_complete(self) -> bool:
        """Whether every sample has its feature and its arrays."""
        return not (self.missing or self.mismatched or self.unreadable)

    def require(self) -> Preflight:
        """Return the report itself.

        Raises:
            CacheIncomplete: something is missing; the message names it.
        """
        if not self.is_complete:
            raise CacheIncomplete(self)
        return self

    def __str__(self) -> str:
        lines = [f"VL Cache: {self.needed - len(self.missing) - len(self.mismatched)}/{self.needed}"]
        for word in ("missing", "mismatched", "unreadable"):
            lines += [f"{word}: {problem.name}: {problem.reason}" for problem in getattr(self, word)]
        return "\n".join(lines)


def preflight(datasets: Sequence[UnifiedVLADataset]) -> Preflight:
    """Return what is missing, mismatched or unreadable in data sets of one cache.

    Steps of samples that a filter left out are not needed. The store is listed once; behind a URL, and of an episode
    that has no recipe noted, the end of each feature is read too, which tells its recipe; what is found is noted, for
    this process and for workers that start later: ask before the first epoch. A
    feature is mismatched if its recipe is not the one that its data set has noted, and so are all of an episode whose
    model is not that of the most episodes; with `on_stale="use"` none is.

    Of the arrays each row that a sample needs is read once, in order: a sensor of 650 Hz has 160 MB for each minute,
    read in 0.06 s where they are in the page cache, else as fast as the disk is. What is disabled is not read.
    """
    missing: list[Problem] = []
    mismatched: list[Problem] = []
    cached = [dataset for dataset in datasets if dataset.use_cache]
    store = ReadOnlyStore(cached[0].cache_root) if cached else None
    if store is not None:
        unsure = [dataset for dataset in cached if dataset.recipe is None and dataset.reader.on_stale != "use"]
        keys = [map(dataset.key_of_step, dataset.needed_steps.tolist()) for dataset in unsure]
        for dataset, recipe in zip(unsure, first_recipes(store, keys), strict=True):
            dataset.compare_with(recipe)
    usual, names_of_model = _usual_model(cached)
    for dataset, vlm_idx, state in _states(store, cached):
        key = dataset.key_of_step(vlm_idx)
        name = f"{key.dataset}_vlm{vlm_idx}"
        if state == "missing":
            missing.append(Problem(name, f"no feature in {dataset.cache_root}"))
        elif state == "stale":
            told = len(mismatched) < _MOST_REASONS and dataset.recipe is not None
            found = store.mismatch_of(key, recipe=dataset.recipe or {}) if told and store is not None else None
            untold = f"of another recipe (the first {_MOST_REASONS} mismatches are told in full)"
            mismatched.append(Problem(name, untold if found is None else str(found)))
        elif _model(dataset) not in (None, usual):
            mismatched.append(Problem(name, f"of another model than {names_of_model} other episodes of this set"))
    unreadable = [problem for dataset in datasets for problem in _array_problems(dataset)]
    needed = sum(len(dataset.needed_steps) for dataset in cached)
    return Preflight(needed, tuple(missing), tuple(mismatched), tuple(unreadable))


def _states(
    store: ReadOnlyStore | None, datasets: Sequence[UnifiedVLADataset]
) -> Iterator[tuple[UnifiedVLADataset, int, str]]:
    steps = [(dataset, int(vlm_idx)) for dataset in datasets for vlm_idx in dataset.needed_steps]
    if store is None or not steps:
        return
    asked = ((dataset.key_of_step(vlm_idx), _compared(dataset)) for dataset, vlm_idx in steps)
    for (dataset, vlm_idx), state in zip(steps, store.states(asked), strict=True):
        yield dataset, vlm_idx, state


def _compared(dataset: UnifiedVLADataset) -> Recipe | None:
    """The recipe that a feature must have to be served; None: any."""
    return None if dataset.reader.on_stale == "use" else dataset.recipe


def _usual_model(datasets: Sequence[UnifiedVLADataset]) -> tuple[str | None, int]:
    counted = Counter(model for model in map(_model, datasets) if model is not None)
    return counted.most_common(1)[0] if counted else (None, 0)


def _model(dataset: UnifiedVLADataset) -> str | None:
    """What the features of different episodes must have in common; each may have its own instruction and cameras."""
    recipe = _compared(dataset)
    if recipe is None:
        return None
    of_model = {name: part for name, part in recipe.items() if name not in ("prompt", "images")}
    return json.dumps(of_model, sort_keys=True)


def _array_problems(dataset: UnifiedVLADataset) -> Iterator[Problem]:
    if not len(dataset):
        return
    try:
        dataset.require_sound_arrays()
    except MediaError as exc:
        yield Problem(str(dataset.data_dir), str(exc))
