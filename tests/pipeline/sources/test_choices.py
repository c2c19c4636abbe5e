"""Options and answers as the benchmarks' files spell them."""

from __future__ import annotations

import pytest

from pipeline.sources import BENCHMARKS, Benchmark, Choices
from pipeline.sources.choices import choices_of, split_question
from tests.pipeline.sources.files import touch, write_rows

PLAIN = ("a cat", "a dog", "neither")


# Rows as VLMEvalKit and lmms-eval lay them out, also those whose options are numbers or letters themselves.
@pytest.mark.parametrize(
    ("source", "row", "options", "answer"),
    [
        ("video-mme", {"options": ["A. a cat", "B. a dog", "C. neither"], "answer": "B"}, PLAIN, 1),
        ("video-mme", {"candidates": "['A. a cat', 'B. a dog', 'C. neither']", "answer": "B"}, PLAIN, 1),
        ("video-mme", {"options": ["A. 10.", "B. 1.", "C. 2."], "answer": "C"}, ("10.", "1.", "2."), 2),
        ("video-mme", {"options": ["A. B", "B. A", "C. D", "D. C"], "answer": "A"}, ("B", "A", "D", "C"), 0),
        ("video-mme", {"options": ["A.D. 1066", "B.C. 44"], "answer": "B"}, ("A.D. 1066", "B.C. 44"), 1),
        ("video-mme", {"options": ["A.a cat", "B.a dog", "C.neither"], "answer": "B"}, PLAIN, 1),
        ("video-mme", {"options": [], "candidates": list(PLAIN), "answer": "B"}, PLAIN, 1),
        ("long-video-bench", {"candidates": list(PLAIN), "correct_choice": 1}, PLAIN, 1),
        ("long-video-bench", {"candidates": list(PLAIN), "correct_choice": 1.0}, PLAIN, 1),
        ("long-video-bench", {"candidates": ["2", "3", "1", "4"], "correct_choice": 1}, ("2", "3", "1", "4"), 1),
        ("long-video-bench", {"candidates": "['4', '0', '1']", "correct_choice": "0"}, ("4", "0", "1"), 0),
        ("long-video-bench", {"candidates": [2, 0, 1], "correct_choice": 0}, ("2", "0", "1"), 0),
        ("long-video-bench", {"candidates": ["B", "A"], "correct_choice": "A"}, ("B", "A"), 0),
        ("video-mmmu", {"options": list(PLAIN), "answer": "B"}, PLAIN, 1),
        ("video-mmmu", {"options": '["A. a cat", "B. a dog", "C. neither"]', "answer": "B"}, PLAIN, 1),
        ("video-mmmu", {"options": ["C", "B", "A"], "answer": "A"}, ("C", "B", "A"), 0),
        ("video-mmmu", {"options": list("9876543210"), "answer": "J"}, tuple("9876543210"), 9),
        ("mvbench", {"candidates": list(PLAIN), "answer": "a dog"}, PLAIN, 1),
        ("mvbench", {"candidates": str(list(PLAIN)), "answer": "a dog"}, PLAIN, 1),
        ("mvbench", {"candidates": ["3", "0", "1"], "answer": "0"}, ("3", "0", "1"), 1),
        ("mvbench", {"candidates": ["C", "B", "A"], "answer": "A"}, ("C", "B", "A"), 2),
        ("mlvu", {"candidates": list(PLAIN), "answer": "a dog"}, PLAIN, 1),
        ("mlvu", {"candidates": "['1', '2', '0']", "answer": "2"}, ("1", "2", "0"), 1),
        ("temp-compass", {"candidates": "['A. a cat', 'B. a dog', 'C. neither']", "answer": "B. a dog"}, PLAIN, 1),
        ("temp-compass", {"candidates": "['A. B', 'B. A']", "answer": "A. B"}, ("B", "A"), 0),
        (
            "temp-compass",
            {"candidates": "['Option 1: a cat', 'Option 2: a dog']", "answer": "Option 2: a dog"},
            ("Option 1: a cat", "Option 2: a dog"),
            1,
        ),
    ],
)
def test_each_benchmarks_answer_is_read_by_its_own_rule(source, row, options, answer):
    assert choices_of(row, answer_is=BENCHMARKS[source].answer_is) == Choices(options, answer)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (list(PLAIN), "(B)"),
        (["A: a cat", "B: a dog", "C: neither"], "b."),
        (["(A) a cat", "(B) a dog", "(C) neither"], "(B) a dog"),
        (["A) a cat", "B) a dog", "C) neither"], "a dog"),
    ],
)
def test_every_spelling_of_a_letter_gives_the_right_option(options, answer):
    found = choices_of({"options": options, "answer": answer}, answer_is="letter")
    assert found == Choices(PLAIN, 1)
    assert found.letters == "ABC"


@pytest.mark.parametrize(
    ("answer_is", "row"),
    [
        ("letter", {}),
        ("letter", {"question": "What is shown?", "answer": "a dog"}),
        ("letter", {"options": list(PLAIN)}),
        ("letter", {"options": list(PLAIN), "answer": "a horse"}),
        ("letter", {"options": list(PLAIN), "answer": "D"}),
        ("letter", {"options": list(PLAIN), "answer": "1"}),
        ("index", {"options": list(PLAIN), "correct_choice": 3}),
        ("index", {"options": list(PLAIN), "correct_choice": -1}),
        ("index", {"options": list(PLAIN), "correct_choice": "a dog"}),
        ("text", {"candidates": list(PLAIN), "answer": "B"}),
        ("text", {"candidates": ["4", "2", "3"], "answer": "1"}),
        ("letter", {"options": ["the only one"], "answer": "A"}),
        ("letter", {"options": ["same", "same"], "answer": "A"}),
        ("letter", {"options": "no list", "answer": "A"}),
        ("letter", {"options": {"B": "a cat", "A": "a dog"}, "answer": "A"}),
        ("letter", {"options": "__import__('os').system('true')", "answer": "A"}),
    ],
)
def test_what_is_no_multiple_choice_is_none(answer_is, row):
    assert choices_of(row, answer_is=answer_is) is None


def test_a_benchmarks_files_are_read_by_its_rule(tmp_path):
    touch(tmp_path / "videos/x.mp4")
    row = {"video_path": "./videos/x.mp4", "question": "How many?", "candidates": ["4", "0", "1"], "correct_choice": 0}
    write_rows(tmp_path / "LongVideoBench.tsv", [row, {**row, "correct_choice": 2}])
    questions = Benchmark(BENCHMARKS["long-video-bench"], tmp_path).questions()
    assert [question.choices for question in questions] == [Choices(("4", "0", "1"), answer) for answer in (0, 2)]


# Annotations with exactly the columns of the published files.
@pytest.mark.parametrize(
    ("source", "file", "row", "video", "question", "choices"),
    [
        (
            "temp-compass",
            "multi-choice/test-00000-of-00001.parquet",
            {"question": "What is it?\nA. a cat\nB. a dog\nC. neither", "answer": "B. a dog", "dim": "action"},
            {"video_id": "x"},
            "What is it?",
            Choices(PLAIN, 1),
        ),
        (
            "temp-compass",
            "caption_matching/test-00000-of-00001.parquet",
            {
                "question": "Which fits?\nCaption A: a cat\nCaption B: a dog",
                "answer": "Caption B: a dog",
                "dim": "order",
            },
            {"video_id": "x"},
            "Which fits?",
            Choices(("Caption A: a cat", "Caption B: a dog"), 1),
        ),
        (
            "temp-compass",
            "caption_matching.json",
            {"question": "Which fits?\nOption 1: a cat\nOption 2: a dog", "answer": "Option 1: a cat", "dim": "order"},
            {"video_id": "x"},
            "Which fits?",
            Choices(("Option 1: a cat", "Option 2: a dog"), 0),
        ),
        (
            "mlvu",
            "mlvu/test-00000-of-00001.parquet",
            {
                "duration": 480.0,
                "question": "What is it?\n(A) a cat\n(B) a dog\n(C) neither",
                "candidates": list(PLAIN),
                "answer": "B",
                "task_type": "plotQA",
            },
            {"video_name": "x.mp4"},
            "What is it?",
            Choices(PLAIN, 1),
        ),
        (
            "mlvu",
            "mlvu/test-00000-of-00001.parquet",
            {"duration": 480.0, "question": "What is it?", "candidates": list(PLAIN), "answer": "a dog"},
            {"video_name": "x.mp4"},
            "What is it?",
            Choices(PLAIN, 1),
        ),
        (
            "mlvu",
            "test-00000-of-00001.parquet",
            {"question": "How many?\nLook.\n(A) 2\n(B) 0\n(C) 1", "answer": "(B)", "task_type": "count"},
            {"video_name": "x.mp4"},
            "How many?\nLook.",
            Choices(("2", "0", "1"), 1),
        ),
        (
            "long-video-bench",
            "validation-00000-of-00001.parquet",
            {
                "video_id": "x",
                "id": "x_0",
                "correct_choice": 1,
                "question": "What is it?",
                **{f"option{index}": text for index, text in enumerate((*PLAIN, "N/A", "N/A"))},
                "duration_group": 15,
            },
            {"video_path": "x.mp4"},
            "What is it?",
            Choices(PLAIN, 1),
        ),
    ],
)
def test_options_are_read_where_each_published_layout_keeps_them(tmp_path, source, file, row, video, question, choices):
    touch(tmp_path / "videos/x.mp4")
    write_rows(tmp_path / file, [{**video, **row}])
    (asked,) = Benchmark(BENCHMARKS[source], tmp_path).questions()
    assert (asked.question, asked.choices, asked.sample.problem) == (question, choices, None)


LIST = "Which are true?\nA. It barks.\nB. It sings.\nC. It sleeps."
THREE = Choices(("It barks.", "It sings.", "It sleeps."), 1)


@pytest.mark.parametrize(
    ("source", "row", "question", "choices"),
    [
        (
            "video-mme",
            {"question": LIST, "options": ["A. Only A", "B. A and C"], "answer": "B"},
            LIST,
            Choices(("Only A", "A and C"), 1),
        ),
        ("video-mme", {"question": LIST, "options": LIST.split("\n")[1:], "answer": "B"}, "Which are true?", THREE),
        ("temp-compass", {"question": LIST, "candidates": ["B", "A"], "answer": "A"}, LIST, Choices(("B", "A"), 1)),
        (
            "temp-compass",
            {"question": LIST, "candidates": ["A->B", "B->A"], "answer": "B->A"},
            LIST,
            Choices(("A->B", "B->A"), 1),
        ),
        (
            "temp-compass",
            {"question": "Which?\n(A) B\n(B) A", "candidates": ["B", "A"], "answer": "B"},
            "Which?",
            Choices(("B", "A"), 1),
        ),
        (
            "temp-compass",
            {"question": LIST, "candidates": ["none", "all"], "answer": "B"},
            "Which are true?",
            THREE,
        ),
    ],
)
def test_what_a_question_lists_leaves_it_only_as_its_options(tmp_path, source, row, question, choices):
    touch(tmp_path / "videos/x.mp4")
    write_rows(tmp_path / "TempCompass_MCQ.json", [{"videoID": "x", "video_id": "x", **row}])
    (asked,) = Benchmark(BENCHMARKS[source], tmp_path, tmp_path / "TempCompass_MCQ.json").questions()
    assert (asked.question, asked.choices) == (question, choices)


@pytest.mark.parametrize(
    "question",
    [
        "What is it?",
        "What is it?\nA. a cat",
        "What is it?\nA. a cat\nC. a dog",
        "What is it?\nA. a cat\nor something else?\nB. a dog",
        "A. a cat\nB. a dog",
        "Which?\nOption 1: a cat\nOption 3: a dog",
    ],
)
def test_a_question_without_a_whole_list_of_options_is_none(question):
    assert split_question(question) == (question, [])
    assert choices_of({"question": question, "answer": "A"}, answer_is="text") is None


def test_questions_carry_them_with_duration_and_domain(tmp_path):
    touch(tmp_path / "video/x.mp4")
    row = {"videoID": "x", "question": "?", "options": ["A. a", "B. b"], "answer": "A"}
    write_rows(tmp_path / "v.json", [{**row, "duration": "short", "domain": "Sports"}, {**row, "duration": 125.5}, row])
    questions = list(Benchmark(BENCHMARKS["video-mme"], tmp_path).questions())
    assert [question.choices for question in questions] == [Choices(("a", "b"), 0)] * 3
    assert [question.duration for question in questions] == ["short", "2 to 15 min", None]
    assert [question.domain for question in questions] == ["Sports", None, None]
