"""Exactly the failed units of an earlier run: a source of them alone, and the check that their recipes are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cache_store import recipe_fingerprint
from jobs.run_files import FailedRun
from pipeline.errors import BuildRefused
from pipeline.sources import IgnoredFile, Sample, Source, StepSample
from pipeline.work_plan import BuildTask, unit_name


class OnlyThese:
    """The samples of `source` that failed, in its order: `recipes` has the recipe's fingerprint for each name.

    Without a fingerprint the source itself called it impossible. Of a robot episode that it could not read the first
    step stands for all of them, so all of such an episode are asked for; those that are there are skipped as ever.
    """

    def __init__(self, source: Source, recipes: Mapping[str, str]) -> None:
        self._source, self._names = source, frozenset(recipes)
        self._episodes = {name.rpartition("_vlm")[0] for name, recipe in recipes.items() if not recipe}

    def __iter__(self) -> Iterator[Sample]:
        return (sample for sample in self._source if self._has_failed(sample))

    def _has_failed(self, sample: Sample) -> bool:
        is_of_one = isinstance(sample, StepSample) and sample.dataset in self._episodes
        return is_of_one or unit_name(sample) in self._names

    def ignored(self) -> list[IgnoredFile]:
        """Nothing: the earlier run told it."""
        return []


def check_recipes(run: FailedRun, source: Source, task: BuildTask) -> None:
    """Check that building the run's failed units now gives what was asked for then.

    Raises:
        BuildRefused: a unit is no longer in the source, or has another recipe: other weights, another instruction.
    """
    if recipe_fingerprint(task.shared_recipe()) != run.recipe:
        raise BuildRefused(
            "the model, its weights, the sampling or this program's recipe changed since that run; "
            "run `vlm-cache build` for what is missing"
        )
    left = dict(run.recipes)
    for sample in source:
        recipe = left.pop(unit_name(sample), "")
        if recipe and recipe_fingerprint(task.recipe(sample)) != recipe:
            raise BuildRefused(f"{unit_name(sample)} has another recipe than in that run, such as another instruction")
    if left:
        named = ", ".join(sorted(left)[:5])
        raise BuildRefused(f"{len(left)} failed units are no longer in the source ({named}); run `vlm-cache build`")
