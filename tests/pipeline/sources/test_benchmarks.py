"""Each benchmark in the layouts of its repository, VLMEvalKit and lmms-eval, and the table of questions."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow.parquet
import pytest

from pipeline.errors import SourceError
from pipeline.sources import BENCHMARKS, Benchmark, UrlPath, write_questions
from tests.pipeline.sources.files import touch, write_rows


def open_benchmark(kind: str, *arguments, **options) -> Benchmark:
    return Benchmark(BENCHMARKS[kind], *arguments, **options)


def found(source: Benchmark) -> list[tuple[str, str]]:
    """Id and path of every video, which must all be there."""
    samples = list(source)
    assert [sample.problem for sample in samples] == [None] * len(samples)
    return [(sample.video_id, sample.relative_path) for sample in samples]


def lvb_row(video: str, number: int = 0, **more) -> dict:
    return {
        "video_id": Path(video).stem,
        "video_path": video,
        "question": "In the video, which\nsubtitles appear?",
        "question_category": "T3E",
        "topic_category": "KH-Knowledge-History",
        "id": f"{Path(video).stem}_{number}",
        "candidates": ["a", "b"],
        "correct_choice": 1,
        "position": [1, 2],
        "starting_timestamp_for_subtitles": 12.5,
        "subtitle_path": f"{Path(video).stem}_en.json",
        "duration_group": 15,
        "duration": 11.0,
        **more,
    }


class TestLongVideoBench:
    ROWS = (lvb_row("-Ab_1.mp4"), lvb_row("-Ab_1.mp4", 1), lvb_row("größe 2.mp4"))

    @pytest.mark.parametrize("name", ["lvb_val.json", "validation-00000-of-00001.parquet"])
    def test_the_repository_names_files_within_videos(self, tmp_path, name):
        touch(tmp_path / "videos/-Ab_1.mp4", tmp_path / "videos/größe 2.mp4")
        write_rows(tmp_path / name, list(self.ROWS))
        # The test part beside it has no answers, and other videos.
        write_rows(tmp_path / "lvb_test_wo_gt.json", [lvb_row("other.mp4")])
        source = open_benchmark("long-video-bench", tmp_path)
        assert found(source) == [("-Ab_1", "videos/-Ab_1.mp4"), ("größe 2", "videos/größe 2.mp4")]
        assert [sample.start_s for sample in source] == [None, None]
        assert {sample.dataset for sample in source} == {"LongVideoBench"}

    @pytest.mark.parametrize("suffix", ["tsv", "csv"])
    def test_the_table_of_vlmevalkit_names_files_below_the_root(self, tmp_path, suffix):
        touch(tmp_path / "videos/x.mp4")
        rows = [
            {"index": 7, "video": "x", "video_path": "./videos/x.mp4", "question": 'a "b"\n\tc', "candidates": ["ä"]}
        ]
        source = open_benchmark("long-video-bench", tmp_path, write_rows(tmp_path / f"LongVideoBench.{suffix}", rows))
        assert found(source) == [("x", "videos/x.mp4")]
        (question,) = source.questions()
        assert (question.question_id, question.question) == ("7", 'a "b"\n\tc')

    def test_the_test_part_is_built_when_it_is_named(self, tmp_path):
        touch(tmp_path / "videos/other.mp4")
        write_rows(tmp_path / "lvb_val.json", [lvb_row("x.mp4")])
        annotations = write_rows(tmp_path / "lvb_test_wo_gt.json", [lvb_row("other.mp4")])
        assert found(open_benchmark("long-video-bench", tmp_path, annotations)) == [("other", "videos/other.mp4")]


class TestVideoMMMU:
    PARTS = ("Adaptation", "Comprehension", "Perception")

    def write(self, root: Path) -> None:
        for part in self.PARTS:
            row = {"question": "Why?", "options": ["A. x"], "answer": "A", "question_type": "multiple-choice"}
            image = {"image": {"bytes": b"\x89PNG", "path": "1.png"}} if part == "Adaptation" else {}
            names = ("validation_Art_Theory_1", "dev_Math_2")
            write_rows(root / part / "test-00000-of-00001.parquet", [{"id": name, **row, **image} for name in names])

    @pytest.mark.parametrize("above", ["", "videos/"])
    def test_a_lecture_is_built_once_for_its_three_parts(self, tmp_path, above):
        self.write(tmp_path)
        touch(tmp_path / f"{above}Art/validation_Art_Theory_1.mp4", tmp_path / f"{above}Science/dev_Math_2.mp4")
        touch(
            tmp_path / f"{above}question_only/dev_Math_2_image.mp4", tmp_path / f"{above}question_only/dev_Math_2.mp4"
        )
        source = open_benchmark("video-mmmu", tmp_path)
        assert found(source) == [
            ("validation_Art_Theory_1", f"{above}Art/validation_Art_Theory_1.mp4"),
            ("dev_Math_2", f"{above}Science/dev_Math_2.mp4"),
        ]
        questions = list(source.questions())
        assert [question.task for question in questions] == [part for part in self.PARTS for _ in range(2)]
        assert [question.question_id for question in questions[:2]] == ["validation_Art_Theory_1", "dev_Math_2"]

    def test_videos_and_annotations_of_lmms_eval_lie_apart(self, tmp_path):
        self.write(tmp_path / "hub")
        touch(tmp_path / "home/Art/validation_Art_Theory_1.mp4", tmp_path / "home/Science/dev_Math_2.mp4")
        assert len(found(open_benchmark("video-mmmu", tmp_path / "home", tmp_path / "hub"))) == 2
        one = tmp_path / "hub/Perception/test-00000-of-00001.parquet"
        assert {q.task for q in open_benchmark("video-mmmu", tmp_path / "home", one).questions()} == {"Perception"}

    def test_the_table_of_vlmevalkit_names_the_file(self, tmp_path):
        touch(tmp_path / "videos/Art/validation_Art_1.mp4")
        row = {
            "index": 0,
            "id": "validation_Art_1",
            "category": "Perception",
            "video": "videos/Art/validation_Art_1.mp4",
        }
        source = open_benchmark("video-mmmu", tmp_path, write_rows(tmp_path / "VideoMMMU.tsv", [row]))
        assert found(source) == [("validation_Art_1", "videos/Art/validation_Art_1.mp4")]
        assert [question.task for question in source.questions()] == ["Perception"]


MVBENCH_ROW = {"question": "What?", "candidates": ["a", "b"], "answer": "a"}


class TestMVBench:
    def write_main_branch(self, root: Path) -> None:
        clips = [
            {"video": "ZS9XR.mp4", "start": 11.1, "end": 19.6, **MVBENCH_ROW},
            {"video": "ZS9XR.mp4", "start": 0.0, "end": 9, **MVBENCH_ROW},
            {"video": "ZS9XR.mp4", "start": 11.1, "end": 19.6, **MVBENCH_ROW},
        ]
        write_rows(root / "json/action_sequence.json", clips)
        folders = [{"video": "castle.s01_clip_00", "start": 1.5, "end": 6.5, "subtitle": "no", **MVBENCH_ROW}]
        write_rows(root / "json/episodic_reasoning.json", folders)
        # These tasks have no bounds, whatever their columns say.
        write_rows(root / "json/moving_count.json", [{"video": "video_1.mp4", "start": 1, "end": 2, **MVBENCH_ROW}])
        write_rows(root / "json/object_shuffle.json", [{"video": "video_1.mp4", **MVBENCH_ROW}])

    def test_clips_folders_of_images_and_equal_names_of_the_main_branch(self, tmp_path):
        self.write_main_branch(tmp_path)
        touch(
            tmp_path / "video/star/Charades_v1_480/ZS9XR.mp4",
            tmp_path / "video/tvqa/frames_fps3_hq/castle.s01_clip_00/00001.jpg",
            tmp_path / "video/data0613/clevrer/video_validation/video_1.mp4",
            tmp_path / "video/perception/videos/video_1.mp4",
        )
        source = open_benchmark("mvbench", tmp_path)
        assert [id for id, _ in found(source)] == [
            "video/star/Charades_v1_480/ZS9XR@11.1-19.6",
            "video/star/Charades_v1_480/ZS9XR@0-9",
            "video/tvqa/frames_fps3_hq/castle.s01_clip_00@1.5-6.5",
            "video/data0613/clevrer/video_validation/video_1",
            "video/perception/videos/video_1",
        ]
        clip, other, images, *_ = source
        assert (clip.path, clip.start_s, clip.end_s, clip.fps) == (other.path, 11.1, 19.6, None)
        assert (images.fps, images.start_s) == (3.0, 1.5)
        assert images.path.is_dir()
        assert [question.task for question in source.questions()][2:4] == ["action_sequence", "episodic_reasoning"]
        assert [question.question_id for question in source.questions()] == ["0", "1", "2", "0", "0", "0"]

    def test_the_branch_video_has_parts_cut_out_and_no_bounds(self, tmp_path):
        row = {"video": "ZS9XR_11.1_19.6.mp4", "start": 11.1, "end": 19.6, **MVBENCH_ROW}
        write_rows(tmp_path / "json/action_sequence.json", [row])
        touch(tmp_path / "star/Charades_segment/ZS9XR_11.1_19.6.mp4")
        expected = [("star/Charades_segment/ZS9XR_11.1_19.6", "star/Charades_segment/ZS9XR_11.1_19.6.mp4")]
        assert found(open_benchmark("mvbench", tmp_path)) == expected
        whole = {"root": {"Action Sequence": "star/Charades_segment/"}, "meta": {"Action Sequence": [row]}}
        (tmp_path / "test.json").write_text(json.dumps(whole))
        source = open_benchmark("mvbench", tmp_path, tmp_path / "test.json")
        assert found(source) == expected
        assert [question.task for question in source.questions()] == ["Action Sequence"]

    def test_the_table_of_vlmevalkit(self, tmp_path):
        rows = [
            {"task_type": "Action Sequence", "prefix": "video/a/", "data_type": "video", "bound": True, "start": 1.0},
            {"task_type": "Moving Count", "prefix": "video/b/", "data_type": "video", "bound": False, "start": 1.0},
            {
                "task_type": "Episodic Reasoning",
                "prefix": "video/c/",
                "data_type": "frame",
                "bound": True,
                "start": 1.0,
            },
        ]
        rows = [{"index": n, "video": "x.mp4", "end": 2.5, **row} for n, row in enumerate(rows)]
        rows[2]["video"] = "clip"
        touch(tmp_path / "video/a/x.mp4", tmp_path / "video/b/x.mp4", tmp_path / "video/c/clip/00001.jpg")
        source = open_benchmark("mvbench", tmp_path, write_rows(tmp_path / "MVBench.tsv", rows))
        assert [id for id, _ in found(source)] == ["video/a/x@1-2.5", "video/b/x", "video/c/clip@1-2.5"]
        assert [sample.fps for sample in source] == [None, None, 3.0]

    def test_parts_built_one_by_one_never_share_an_id(self, tmp_path):
        touch(tmp_path / "video/perception/videos/video_1.mp4", tmp_path / "video/clevrer/video_validation/video_1.mp4")
        ids = []
        for task in ("moving_count", "object_shuffle"):
            part = write_rows(tmp_path / f"json/{task}.json", [{"video": "video_1.mp4", **MVBENCH_ROW}])
            ids += [id for id, _ in found(open_benchmark("mvbench", tmp_path, part))]
        assert len(set(ids)) == 2
        assert ids == [id for id, _ in found(open_benchmark("mvbench", tmp_path))]

    def test_a_bound_that_is_not_there_stays_open(self, tmp_path):
        touch(tmp_path / "video/star/Charades_v1_480/x.mp4")
        write_rows(tmp_path / "json/action_sequence.json", [{"video": "x.mp4", "start": 2, "end": None}])
        assert [id for id, _ in found(open_benchmark("mvbench", tmp_path))] == ["video/star/Charades_v1_480/x@2-"]

    def test_an_unknown_task_and_a_bound_that_is_no_number_are_refused_by_row(self, tmp_path):
        path = write_rows(tmp_path / "json/cooking.json", [{"video": "x.mp4"}])
        with pytest.raises(SourceError, match=r"row 1 of json/cooking\.json.*cooking"):
            open_benchmark("mvbench", tmp_path)
        path.unlink()
        for start, told in (("soon", "soon"), ([1], r"\[1\]"), ({"s": 1}, "{'s': 1}")):
            write_rows(tmp_path / "json/action_sequence.json", [{"video": "x.mp4", "start": start, "end": 2}])
            with pytest.raises(SourceError, match=rf"row 1 of json/action_sequence\.json.*{told}"):
                open_benchmark("mvbench", tmp_path)


class TestTempCompass:
    @pytest.mark.parametrize("pattern", ["{}/test-00000-of-00001.parquet", "{}.json"])
    def test_four_tasks_ask_about_the_same_videos(self, tmp_path, pattern):
        tasks = ("caption_matching", "captioning", "multi-choice", "yes_no")
        for task in tasks:
            row = {"question": "Q?\nA. x", "answer": "A", "dim": "action"}
            rows = [{"video_id": name, **row} for name in ("1094.webm", "1094.webm", "33 ü")]
            write_rows(tmp_path / pattern.format(task), rows)
        touch(tmp_path / "videos/1094.webm.mp4", tmp_path / "videos/33 ü.mp4")
        source = open_benchmark("temp-compass", tmp_path)
        assert found(source) == [("1094.webm", "videos/1094.webm.mp4"), ("33 ü", "videos/33 ü.mp4")]
        questions = list(source.questions())
        assert len(questions) == 12
        assert {question.task for question in questions} == set(tasks)
        assert {question.question_type for question in questions} == {"action"}

    def test_the_tables_of_vlmevalkit(self, tmp_path):
        touch(tmp_path / "videos/1.mp4")
        row = {"index": 0, "task_type": "yes_no", "prefix": "./videos", "suffix": ".mp4", "video": 1, "dim": "speed"}
        write_rows(tmp_path / "TempCompass_YorN.tsv", [row])
        write_rows(tmp_path / "TempCompass_MCQ.tsv", [{**row, "task_type": "multi-choice"}])
        source = open_benchmark("temp-compass", tmp_path)
        assert found(source) == [("1", "videos/1.mp4")]
        assert [question.task for question in source.questions()] == ["multi-choice", "yes_no"]


class TestMLVU:
    def test_the_repository_has_a_folder_for_each_task(self, tmp_path):
        row = {"duration": 480.0, "question": "Q?", "candidates": ["a"], "answer": "a"}
        plot = [{"video": name, "question_type": "plotQA", **row} for name in ("movie_1.mp4", "movie_1.mp4", "x.mp4")]
        write_rows(tmp_path / "MLVU/json/1_plotQA.json", plot)
        write_rows(tmp_path / "MLVU/json/9_summary.json", [{"video": "x.mp4", **row}])
        for path in ("1_plotQA/movie_1.mp4", "1_plotQA/x.mp4", "9_summary/x.mp4"):
            touch(tmp_path / "MLVU/video" / path)
        source = open_benchmark("mlvu", tmp_path)
        assert [id for id, _ in found(source)] == [
            "MLVU/video/1_plotQA/movie_1",
            "MLVU/video/1_plotQA/x",
            "MLVU/video/9_summary/x",
        ]
        assert [question.task for question in source.questions()] == ["plotQA", "plotQA", "plotQA", "summary"]

    def test_the_tables_of_vlmevalkit_and_the_parquet_of_lmms_eval(self, tmp_path):
        touch(tmp_path / "MLVU/video/3_ego/ego_35.mp4", tmp_path / "video/ego_36.mp4")
        row = {"index": 0, "task_type": "ego", "prefix": "./MLVU/video/3_ego", "video": "ego_35.mp4"}
        table = write_rows(tmp_path / "MLVU_MCQ.tsv", [row])
        assert found(open_benchmark("mlvu", tmp_path)) == [("MLVU/video/3_ego/ego_35", "MLVU/video/3_ego/ego_35.mp4")]
        table.unlink()
        rows = [{"video_name": "ego_36.mp4", "question": "Q?", "task_type": "ego", "answer": "A"}]
        write_rows(tmp_path / "data/test-00000-of-00001.parquet", rows)
        source = open_benchmark("mlvu", tmp_path)
        assert found(source) == [("video/ego_36", "video/ego_36.mp4")]
        assert [question.task for question in source.questions()] == ["ego"]


class TestEveryBenchmark:
    def test_a_missing_video_names_the_questions_that_need_it(self, tmp_path):
        rows = [lvb_row("gone.mp4", n) for n in range(7)] + [lvb_row("here.mp4")]
        touch(tmp_path / "videos/here.mp4")
        write_rows(tmp_path / "lvb_val.json", rows)
        gone, here = open_benchmark("long-video-bench", tmp_path)
        assert "videos/gone.mp4" in gone.problem
        assert "questions gone_0, gone_1, gone_2, gone_3, gone_4 and 2 more" in gone.problem
        assert here.problem is None
        problems = [q.sample.problem is None for q in open_benchmark("long-video-bench", tmp_path).questions()]
        assert problems == [False] * 7 + [True]

    @pytest.mark.parametrize(
        ("archive", "command"),
        [
            ("videos.tar.part.aa", "cat videos.tar.part* | tar -x"),
            ("my videos.zip", 'for archive in *.zip; do unzip -n "$archive"; done'),
            ("video/a.tar.gz", 'for archive in *.tar.gz; do tar -xzf "$archive"; done'),
        ],
    )
    def test_archives_that_were_not_unpacked_come_with_their_command(self, tmp_path, archive, command):
        root = tmp_path / "it's here"
        write_rows(root / "lvb_val.json", [lvb_row("x.mp4")])
        touch(root / archive)
        (sample,) = open_benchmark("long-video-bench", root)
        assert archive in sample.problem
        assert command in sample.problem
        touch(root / "videos/x.mp4")
        (sample,) = open_benchmark("long-video-bench", root)
        assert sample.problem is None

    def test_two_paths_to_one_id_are_both_named(self, tmp_path):
        touch(tmp_path / "videos/x.mp4", tmp_path / "videos/x.mkv")
        write_rows(tmp_path / "lvb_val.json", [lvb_row("x.mp4"), lvb_row("x.mkv")])
        with pytest.raises(SourceError, match=r"'videos/x': videos/x\.mp4 and videos/x\.mkv"):
            open_benchmark("long-video-bench", tmp_path)

    def test_a_clip_and_a_file_that_is_called_like_one_are_both_named(self, tmp_path):
        rows = [{"video": "x.mp4", "start": 1, "end": 2}, {"video": "x@1-2.mp4"}]
        rows = [{**row, "prefix": "video", "bound": "start" in row} for row in rows]
        write_rows(tmp_path / "rows.json", rows)
        with pytest.raises(SourceError, match=r"x\.mp4 from 1\.0 to 2\.0 s and video/x@1-2\.mp4"):
            open_benchmark("mvbench", tmp_path, tmp_path / "rows.json")

    def test_a_row_without_a_video_is_refused_by_number(self, tmp_path):
        write_rows(tmp_path / "lvb_val.json", [lvb_row("x.mp4"), {"video_path": None, "question": "?"}])
        with pytest.raises(SourceError, match=r"row 2 of .*lvb_val\.json has no video_path"):
            open_benchmark("long-video-bench", tmp_path)

    @pytest.mark.parametrize("name", ["rows.json", "rows.tsv"])
    def test_a_byte_order_mark_is_no_part_of_the_first_column(self, tmp_path, name):
        touch(tmp_path / "videos/x.mp4")
        path = write_rows(tmp_path / name, [{"video_path": "x.mp4"}])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert found(open_benchmark("long-video-bench", tmp_path, path)) == [("x", "videos/x.mp4")]

    @pytest.mark.parametrize("kind", BENCHMARKS)
    def test_a_folder_without_annotations_says_which_are_expected(self, tmp_path, kind):
        with pytest.raises(SourceError, match="--annotations") as refusal:
            open_benchmark(kind, tmp_path)
        assert BENCHMARKS[kind].annotations[0] in str(refusal.value)

    @pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "tsv", "csv"])
    def test_a_url_and_a_folder_give_equal_names(self, tmp_path, suffix):
        touch(tmp_path / "set/videos/a b.mp4")
        write_rows(
            tmp_path / f"set/rows.{suffix}", [{"id": "1", "video_path": name} for name in ("a b.mp4", "gone.mp4")]
        )
        memory = fsspec.filesystem("memory")
        memory.put(str(tmp_path / "set"), "/benchmark-test", recursive=True)
        try:
            here = list(open_benchmark("long-video-bench", tmp_path / "set"))
            there = list(open_benchmark("long-video-bench", UrlPath("memory://benchmark-test")))
        finally:
            memory.rm("/benchmark-test", recursive=True)
        names = [
            [(s.dataset, s.video_id, s.relative_path, s.problem is None) for s in source] for source in (here, there)
        ]
        assert names[0] == names[1]
        assert there[0].path == UrlPath("memory://benchmark-test/videos/a b.mp4")


class TestQuestionTable:
    def test_any_text_that_json_can_hold_is_a_row_of_the_table(self, tmp_path):
        texts = ["a\u2028b\x85c", "half \ud83d", "whole \U0001f3ac"]
        lines = [json.dumps({"id": "1", "video_path": "x.mp4", "question": text}, ensure_ascii=False) for text in texts]
        # A surrogate becomes the escape that JSON has for it.
        (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode(errors="backslashreplace"))
        questions = open_benchmark("long-video-bench", tmp_path).questions()
        rows = pyarrow.parquet.read_table(write_questions(questions, tmp_path / "report")).to_pylist()
        assert [row["question"] for row in rows] == ["a\u2028b\x85c", "half ?", "whole \U0001f3ac"]

    def test_every_question_has_its_row_and_repeated_ones_have_theirs(self, tmp_path):
        TestMVBench().write_main_branch(tmp_path / "set")
        touch(tmp_path / "set/video/star/Charades_v1_480/ZS9XR.mp4")
        path = write_questions(open_benchmark("mvbench", tmp_path / "set").questions(), tmp_path / "new/report")
        rows = pyarrow.parquet.read_table(path).to_pylist()
        assert path.name == "questions.parquet"
        assert [row["row"] for row in rows] == list(range(6))
        clip = "video/star/Charades_v1_480/ZS9XR"
        assert [row["video_id"] for row in rows[:3]] == [f"{clip}@{part}" for part in ("11.1-19.6", "0-9", "11.1-19.6")]
        assert rows[1] == {
            "row": 1,
            "annotations": "json/action_sequence.json",
            "task": "action_sequence",
            "question_id": "1",
            "question": "What?",
            "question_type": None,
            "dataset": "MVBench",
            "video_id": f"{clip}@0-9",
            "path": "video/star/Charades_v1_480/ZS9XR.mp4",
            "start_s": 0.0,
            "end_s": 9.0,
            "problem": None,
        }
        assert "video_1.mp4" in rows[4]["problem"]
