"""What a comparison with and without the cache says of the two ways' logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from consumers.evaluation.comparison import Answer, compare
from consumers.evaluation.statistics import CacheStatistics
from pipeline.sources.choices import Choices
from pipeline.sources.samples import Question, VideoSample

NAN, INF = float("nan"), float("inf")


class FakeLongVA:
    """Answers with given logits: the first with the cache, the second without it."""

    model_path, cache = "fake", None

    def __init__(self, cached, live):
        self.statistics, self._logits = CacheStatistics(), (torch.tensor(cached), torch.tensor(live))

    def letter_logits(self, message, letters, dataset=None, *, live=None):
        return self._logits[live is not None]


def answer_of(cached, live):
    sample = VideoSample("set", "video", Path("video.mp4"), "video.mp4")
    question = Question("questions", None, "1", "What?", None, sample, Choices(("a cat", "a dog"), 0))
    (answer,) = compare(FakeLongVA(cached, live), [(0, question)], on_failure=repr)
    return answer


@pytest.mark.parametrize(
    ("cached", "live", "agrees"),
    [
        ([1.5, 2.0], [1.5, 2.0], True),
        ([1.5, 2.0], [1.5, 2.0000002], False),
        ([0.0, 2.0], [-0.0, 2.0], False),
        ([-0.0, 2.0], [-0.0, 2.0], True),
        ([NAN, NAN], [NAN, NAN], True),
        ([NAN, 1.0], [-NAN, 1.0], False),
        ([NAN, 1.0], [INF, 1.0], False),
        ([INF, -INF], [INF, -INF], True),
    ],
)
def test_answers_agree_if_their_bits_do_and_still_do_when_they_are_read_back(cached, live, agrees):
    answer = answer_of(cached, live)
    assert (answer.problem, answer.agrees) == (None, agrees)
    line = json.dumps(answer.to_json())
    again = Answer.from_json(json.loads(line))
    assert (again.agrees, json.dumps(again.to_json())) == (agrees, line)
