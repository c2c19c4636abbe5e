"""Steps are grouped by the source's order alone, whatever is asked of them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

from jobs.failed_units import OnlyThese
from pipeline.sources import ImageFile, StepBatches, StepSample
from tests.pipeline.test_work_plan import Listed


def steps(episode: str, count: int, *, impossible: tuple[int, ...] = ()) -> list[StepSample]:
    images = (ImageFile("front", Path("x.png")),)
    made = [StepSample(episode, 30 * number, images, "lift") for number in range(count)]
    return [replace(step, problem="no image") if n in impossible else step for n, step in enumerate(made)]


def groups(source) -> list[tuple[str, int, list[int]]]:
    return [(step.dataset, step.vlm_idx, [other.vlm_idx for other in step.together]) for step in source]


def test_each_step_knows_the_neighbours_of_its_forward_and_no_group_spans_episodes():
    source = StepBatches(Listed(*steps("a", 5), *steps("b", 2)), 2)
    assert groups(source) == [
        ("a", 0, [0, 30]),
        ("a", 30, [0, 30]),
        ("a", 60, [60, 90]),
        ("a", 90, [60, 90]),
        ("a", 120, [120]),
        ("b", 0, [0, 30]),
        ("b", 30, [0, 30]),
    ]
    samples = list(source)
    assert list(source) == samples
    assert pickle.loads(pickle.dumps(samples)) == samples
    assert source.ignored() == []


def test_an_impossible_step_keeps_its_place_and_has_no_part_in_the_forward():
    source = StepBatches(Listed(*steps("a", 4, impossible=(0,))), 2)
    assert groups(source) == [("a", 0, []), ("a", 30, [30]), ("a", 60, [60, 90]), ("a", 90, [60, 90])]


def test_a_retry_of_one_step_has_the_group_that_the_whole_source_gives_it():
    source = OnlyThese(StepBatches(Listed(*steps("a", 6)), 3), {"a_vlm120": "fingerprint"})
    assert groups(source) == [("a", 120, [90, 120, 150])]
