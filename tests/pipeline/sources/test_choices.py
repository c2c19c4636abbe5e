"""Options and answers as the benchmarks' files spell them."""

from __future__ import annotations

import pytest

from pipeline.sources import BENCHMARKS, Benchmark, Choices
from pipeline.sources.choices import choices_of
from tests.pipeline.sources.files import touch, write_rows

PLAIN = ("a cat", "a dog", "neither")


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["A. a cat", "B. a dog", "C. neither"], "answer": "B"},  # Video-MME
        {"candidates": "['A. a cat', 'B. a dog', 'C. neither']", "answer": "B"},  # VLMEvalKit's TSV of it
        {"candidates": list(PLAIN), "correct_choice": 1},  # LongVideoBench
        {"candidates": list(PLAIN), "answer": "a dog"},  # MVBench, MLVU
        {"candidates": str(list(PLAIN)), "answer": "a dog"},
        {"options": list(PLAIN), "answer": "(B)"},
        {"options": ["(A) a cat", "(B) a dog", "(C) neither"], "answer": "(B) a dog"},
        {"options": ["A: a cat", "B: a dog", "C: neither"], "answer": "b."},
    ],
)
def test_every_spelling_gives_the_options_and_the_right_one(row):
    assert choices_of(row) == Choices(PLAIN, 1)
    assert choices_of(row).letters == "ABC"


def test_an_options_own_text_comes_before_what_a_letter_would_mean():
    assert choices_of({"options": ["C", "B", "A"], "answer": "A"}) == Choices(("C", "B", "A"), 2)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"question": "What is shown?", "answer": "a dog"},
        {"options": list(PLAIN)},
        {"options": list(PLAIN), "answer": "a horse"},
        {"options": list(PLAIN), "answer": "D"},
        {"options": list(PLAIN), "correct_choice": 3},
        {"options": ["the only one"], "answer": "A"},
        {"options": ["same", "same"], "answer": "A"},
        {"options": "no list", "answer": "A"},
        {"options": "__import__('os').system('true')", "answer": "A"},
    ],
)
def test_what_is_no_multiple_choice_is_none(row):
    assert choices_of(row) is None


def test_questions_carry_them_with_duration_and_domain(tmp_path):
    touch(tmp_path / "video/x.mp4")
    row = {"videoID": "x", "question": "?", "options": ["A. a", "B. b"], "answer": "A"}
    write_rows(tmp_path / "v.json", [{**row, "duration": "short", "domain": "Sports"}, {**row, "duration": 125.5}, row])
    questions = list(Benchmark(BENCHMARKS["video-mme"], tmp_path).questions())
    assert [question.choices for question in questions] == [Choices(("a", "b"), 0)] * 3
    assert [question.duration for question in questions] == ["short", "2 to 15 min", None]
    assert [question.domain for question in questions] == ["Sports", None, None]
