"""LeRobot data sets of versions 2.0, 2.1 and 3.0, written as LeRobot lays them out, and read here and behind a URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.errors import SourceError
from pipeline.sources import LeRobot, UrlPath
from tests.pipeline.sources.files import touch, write_rows

FEATURES = {
    "cam.front": {"dtype": "video"},
    "cam.wrist": {"dtype": "video"},
    "cam.ghost": {"dtype": "video"},
    "cam.still": {"dtype": "image"},
    "state": {"dtype": "float64"},
}
CAMERAS = ("cam.front", "cam.wrist")
TASKS = ("lift", "place")


def write_info(root: Path, version: str, **paths: str) -> None:
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": 10, "chunks_size": 1, "features": FEATURES, **paths}
    (root / "meta/info.json").write_text(json.dumps(info))


def rows_of(episode: int, length: int) -> list[dict[str, Any]]:
    """The last row of every episode belongs to the second task."""
    return [{"episode_index": episode, "frame_index": n, "task_index": int(n == length - 1)} for n in range(length)]


def write_v2(root: Path, *, version: str = "v2.1", lengths: tuple[int, ...] = (5, 7)) -> Path:
    write_info(
        root,
        version,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    episodes = [{"episode_index": n, "tasks": list(TASKS), "length": length} for n, length in enumerate(lengths)]
    write_rows(root / "meta/episodes.jsonl", episodes)
    write_rows(root / "meta/tasks.jsonl", [{"task_index": n, "task": task} for n, task in enumerate(TASKS)])
    # All that tells the two versions apart.
    touch(root / ("meta/stats.json" if version == "v2.0" else "meta/episodes_stats.jsonl"))
    for index, length in enumerate(lengths):
        write_rows(root / f"data/chunk-{index:03d}/episode_{index:06d}.parquet", rows_of(index, length))
        for camera in CAMERAS:
            touch(root / f"videos/chunk-{index:03d}/{camera}/episode_{index:06d}.mp4")
    return root


def write_v3(root: Path, *, lengths: tuple[int, ...] = (5, 7, 4), index_name: str = "task", **changes: Any) -> Path:
    """Episodes 0 and 1 share all their files, episode 2 has the second file of the front camera alone.

    `changes` are made to the row of episode 1.
    """
    write_info(
        root,
        "v3.0",
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    tasks = {"task_index": list(range(len(TASKS))), index_name: list(TASKS)}
    pyarrow.parquet.write_table(pyarrow.table(tasks), root / "meta/tasks.parquet")
    episodes = []
    for index, length in enumerate(lengths):
        row: dict[str, Any] = {"episode_index": index, "length": length, "stats/state/min": [0.0]}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for camera in CAMERAS:
            first = 0 if camera == "cam.front" and index == 2 else sum(lengths[:index])
            place = {"chunk_index": 0, "file_index": int(camera == "cam.front" and index == 2)}
            # Accumulated durations end up a little beside the frames' times.
            times = {"from_timestamp": first / 10 - 1e-9, "to_timestamp": (first + length) / 10 + 1e-9}
            row |= {f"videos/{camera}/{name}": value for name, value in (place | times).items()}
        episodes.append({**row, **(changes if index == 1 else {})})
    write_rows(root / "meta/episodes/chunk-000/file-000.parquet", episodes[:2])
    write_rows(root / "meta/episodes/chunk-000/file-001.parquet", episodes[2:])
    rows = [row for index, length in enumerate(lengths) for row in rows_of(index, length)]
    write_rows(root / "data/chunk-000/file-000.parquet", rows)
    for path in ("cam.front/chunk-000/file-000", "cam.front/chunk-000/file-001", "cam.wrist/chunk-000/file-000"):
        touch(root / f"videos/{path}.mp4")
    return root


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_steps_of_version_2_are_rows_and_each_has_its_own_task(tmp_path, version):
    source = LeRobot(write_v2(tmp_path / "set", version=version), dataset="pick", vlm_reuse_count=2)
    samples = list(source)
    assert [(s.dataset, s.vlm_idx) for s in samples[:3]] == [("pick_episode_000000", n) for n in (0, 2, 4)]
    assert [s.instruction for s in samples[:3]] == ["lift", "lift", "place"]
    assert [image.path.relative_to(tmp_path / "set").as_posix() for image in samples[3].images] == [
        "videos/chunk-001/cam.front/episode_000001.mp4",
        "videos/chunk-001/cam.wrist/episode_000001.mp4",
    ]
    assert [image.frame_index for image in samples[1].images] == [2, 2]


def test_episodes_of_version_3_are_cut_out_of_shared_files_by_camera(tmp_path):
    samples = list(LeRobot(write_v3(tmp_path / "set"), vlm_reuse_count=2))
    steps = [(s.dataset, s.vlm_idx, s.instruction) for s in samples]
    assert steps[2:5] == [
        ("set_episode_000000", 4, "place"),
        ("set_episode_000001", 0, "lift"),
        ("set_episode_000001", 2, "lift"),
    ]
    assert len(samples) == 3 + 4 + 2
    frames = [[(image.path.name, image.frame_index) for image in sample.images] for sample in samples]
    assert frames[3] == [("file-000.mp4", 5), ("file-000.mp4", 5)]
    assert frames[6] == [("file-000.mp4", 11), ("file-000.mp4", 11)]
    assert frames[8] == [("file-001.mp4", 2), ("file-000.mp4", 14)]


@pytest.mark.parametrize("index_name", ["task", "__index_level_0__"])
def test_tasks_of_version_3_are_the_index_of_their_table_whatever_it_is_called(tmp_path, index_name):
    source = LeRobot(write_v3(tmp_path / "set", index_name=index_name), vlm_reuse_count=4)
    assert [sample.instruction for sample in source][:2] == ["lift", "place"]


def test_an_instruction_and_views_from_outside(tmp_path):
    for root in (write_v2(tmp_path / "two"), write_v3(tmp_path / "three")):
        first = next(iter(LeRobot(root, instruction="Go.", views=["cam.wrist"])))
        assert first.instruction == "Go."
        assert [image.view for image in first.images] == ["cam.wrist"]
        with pytest.raises(SourceError, match=r"cam\.top.*cam\.front, cam\.wrist"):
            LeRobot(root, views=["cam.top"])


def test_cameras_without_files_and_stills_are_left_out_and_said(tmp_path):
    for root in (write_v2(tmp_path / "two"), write_v3(tmp_path / "three")):
        source = LeRobot(root)
        assert [image.view for image in next(iter(source)).images] == ["cam.front", "cam.wrist"]
        assert [(entry.path.name, entry.reason) for entry in source.ignored()] == [
            ("cam.ghost", "info.json lists it without files"),
            ("cam.still", "images inside parquet files are not read"),
        ]


def test_a_task_that_is_no_text_is_a_problem_of_the_episodes_that_have_it(tmp_path):
    root = write_v2(tmp_path / "set")
    write_rows(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "lift"}, {"task_index": 1, "task": "\ud83d"}])
    write_rows(root / "data/chunk-000/episode_000000.parquet", [{"task_index": 0}] * 5)
    samples = list(LeRobot(root))
    assert {s.dataset for s in samples if not s.problem} == {"set_episode_000000"}
    assert [s.problem for s in samples if s.problem] == [r"the instruction '\ud83d' is no text: surrogates not allowed"]


def test_two_episodes_of_one_index_are_refused_by_it(tmp_path):
    two, three = write_v2(tmp_path / "two"), write_v3(tmp_path / "three", episode_index=2)
    lines = two / "meta/episodes.jsonl"
    lines.write_text(lines.read_text() + lines.read_text().splitlines()[1])
    for root, index in ((two, 1), (three, 2)):
        with pytest.raises(SourceError, match=f"{root}/meta lists episode_index {index} twice"):
            LeRobot(root)


@pytest.mark.parametrize(
    ("write", "files"),
    [(write_v2, "cam.wrist/episode_000000.mp4"), (write_v3, "cam.front/chunk-000/file-000.mp4")],
)
def test_a_camera_that_the_first_episode_alone_lacks_is_kept(tmp_path, write, files):
    root = write(tmp_path / "set")
    (lacking,) = (path for path in (root / "videos").rglob("*.mp4") if path.as_posix().endswith(files))
    lacking.unlink()
    source = LeRobot(root)
    assert {tuple(image.view for image in sample.images) for sample in source} == {CAMERAS}
    assert [entry.path.name for entry in source.ignored()] == ["cam.ghost", "cam.still"]


def say_rates(root: Path, place: str, *, fps: float, **rates: object) -> None:
    """Let info.json say what each camera's videos were recorded with."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text()) | {"fps": fps}
    for camera, rate in rates.items():
        info["features"][f"cam.{camera}"][place] = {"video.fps": rate, "video.codec": "av1"}
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("rate", [60, 15.0, 29.97, 0])
@pytest.mark.parametrize(("write", "place"), [(write_v2, "video_info"), (write_v3, "info")])
def test_a_camera_of_another_rate_is_refused_by_name_and_may_be_left_out(tmp_path, write, rate, place):
    root = write(tmp_path / "set")
    say_rates(root, place, fps=30, front=30, wrist=rate, ghost=5)
    with pytest.raises(SourceError, match=rf"video\.fps.*{rate:g} for cam\.wrist.*30 .*--views"):
        LeRobot(root)
    assert {image.view for sample in LeRobot(root, views=["cam.front"]) for image in sample.images} <= {"cam.front"}


@pytest.mark.parametrize(("fps", "rate"), [(30, 30.0), (29.97, 29), (29.97, 30000 / 1001), (30, None)])
def test_a_rate_that_is_the_data_sets_but_for_how_it_is_written_is_no_other(tmp_path, fps, rate):
    root = write_v2(tmp_path / "set")
    say_rates(root, "info", fps=fps, wrist=rate)
    assert [image.view for image in next(iter(LeRobot(root))).images] == list(CAMERAS)


def say_times(root: Path, *, rate: float) -> None:
    """Let the meta files of version 3 place episodes, one behind the other, in videos of `rate` frames a second."""
    begin = 0
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        rows = pyarrow.parquet.read_table(path).to_pylist()
        for row in rows:
            first = 0 if row["videos/cam.front/file_index"] else begin
            for camera, start in (("cam.front", first), ("cam.wrist", begin)):
                row[f"videos/{camera}/from_timestamp"] = start / rate
                row[f"videos/{camera}/to_timestamp"] = (start + row["length"]) / rate
            begin += row["length"]
        write_rows(path, rows)


@pytest.mark.parametrize("lengths", [(500, 500, 4), (4, 3, 4)])
def test_a_camera_of_the_rates_whole_part_is_told_from_a_rate_cut_off_by_its_times(tmp_path, lengths):
    root = write_v3(tmp_path / "set", lengths=lengths)
    say_rates(root, "info", fps=29.97, front=29, wrist=29)
    say_times(root, rate=29.97)
    firsts = [s.images[1].frame_index for s in LeRobot(root, vlm_reuse_count=1000)]
    assert firsts == [0, lengths[0], lengths[0] + lengths[1]]
    say_times(root, rate=29)
    with pytest.raises(SourceError, match=r"video\.fps.*29 for cam\.front, 29 for cam\.wrist.*29\.97 "):
        LeRobot(root)


def test_times_of_another_writing_of_the_rate_are_no_other_rate(tmp_path):
    root = write_v3(tmp_path / "set", lengths=(500, 500, 4))
    say_rates(root, "info", fps=29.97, front=30000 / 1001, wrist=29.97)
    say_times(root, rate=30000 / 1001)
    assert [s.images[1].frame_index for s in LeRobot(root, vlm_reuse_count=1000)] == [0, 500, 1000]


ODD = {
    "text": lambda value: f"x{value}",
    "null": lambda value: None,
    "one null": lambda value: None if value == 1 else value,
    "list": lambda value: [value],
    "half": lambda value: value + 0.5,
    "not a number": lambda value: float("nan"),
    "bytes": lambda value: b"x",
}


def make_odd(path: Path, column: str, odd: str) -> None:
    table = pyarrow.parquet.read_table(path)
    values = [ODD[odd](value) for value in table[column].to_pylist()]
    index = table.column_names.index(column)
    pyarrow.parquet.write_table(table.set_column(index, column, pyarrow.array(values)), path)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("column", ["episode_index", "task_index", "frame_index"])
@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_rows_with_an_odd_index_are_problems_of_their_episodes(tmp_path, write, column, odd):
    root = write(tmp_path / "set")
    make_odd(min((root / "data").rglob("*.parquet")), column, odd)
    samples = list(LeRobot(root, vlm_reuse_count=7))
    is_read = write is write_v3 or column != "episode_index"  # version 2 has a file for each
    assert any(sample.problem for sample in samples) == is_read
    assert len(samples) == (2 if write is write_v2 else 3)


@pytest.mark.parametrize("odd", sorted({*ODD} - {"one null"}))
@pytest.mark.parametrize("column", ["episode_index", "length", "data/chunk_index", "videos/cam.wrist/from_timestamp"])
def test_odd_meta_files_of_version_3_are_refused_or_problems(tmp_path, column, odd):
    root = write_v3(tmp_path / "set")
    for path in (root / "meta/episodes").rglob("*.parquet"):
        make_odd(path, column, odd)
    if column.endswith("timestamp") and odd in ("null", "half", "not a number"):
        assert any(sample.problem for sample in LeRobot(root))
    else:
        with pytest.raises(SourceError, match=r"meta/episodes.*file-000\.parquet"):
            LeRobot(root)


@pytest.mark.parametrize("value", ["x", None, [1], 0.5])
@pytest.mark.parametrize(
    ("file", "column"), [("tasks", "task_index"), ("episodes", "episode_index"), ("episodes", "length")]
)
def test_odd_meta_files_of_version_2_are_refused_by_name(tmp_path, file, column, value):
    root = write_v2(tmp_path / "set")
    path = root / f"meta/{file}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {column: value}) + "\n" for row in rows))
    with pytest.raises(SourceError, match=rf"{file}\.jsonl cannot be read"):
        LeRobot(root)


def test_a_rate_that_is_no_number_is_refused(tmp_path):
    root = write_v2(tmp_path / "set")
    say_rates(root, "info", fps=30, wrist="fast")
    with pytest.raises(SourceError, match=r"info\.json.*fast"):
        LeRobot(root)


@pytest.mark.parametrize("version", ["v1.6", "v4.0"])
def test_a_version_that_is_not_read_is_refused_with_those_that_are(tmp_path, version):
    with pytest.raises(SourceError, match=rf"{version}.*v2\.0, v2\.1, v3\.0"):
        LeRobot(write_v2(tmp_path / "set", version=version))


def test_a_missing_parquet_of_version_2_is_one_problem(tmp_path):
    root = write_v2(tmp_path / "set")
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    samples = list(LeRobot(root, vlm_reuse_count=7))
    assert [bool(s.problem) for s in samples] == [True, False]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_of(0, 12)[:4], "5 rows by the meta files, and 4 in"),
        (rows_of(0, 6), "5 rows by the meta files, and 6 in"),
        ([{**row, "frame_index": row["frame_index"] + 5} for row in rows_of(0, 5)], "row 0 of episode 0 is frame 5"),
        ([row for row in rows_of(0, 6) if row["frame_index"] != 2], "row 2 of episode 0 is frame 3"),
        (rows_of(0, 5)[::-1], "row 0 of episode 0 is frame 4"),
    ],
)
@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_rows_that_are_not_the_frames_of_the_episode_from_0_on_are_one_problem(tmp_path, write, rows, said):
    """The build takes pictures by row, and readers find features by frame."""
    lengths = (5, 7) if write is write_v2 else (5, 7, 4)
    root = write(tmp_path / "set", lengths=lengths)
    if write is write_v2:
        write_rows(root / "data/chunk-000/episode_000000.parquet", rows)
    else:
        others = [row for index, length in list(enumerate(lengths))[1:] for row in rows_of(index, length)]
        write_rows(root / "data/chunk-000/file-000.parquet", [*rows, *others])
    samples = list(LeRobot(root, vlm_reuse_count=7))
    assert [bool(s.problem) for s in samples] == [True, *[False] * (len(lengths) - 1)]
    assert said in samples[0].problem


@pytest.mark.parametrize(("write", "episodes"), [(write_v2, 1), (write_v3, 3)])
def test_rows_without_tasks_are_one_problem_of_each_episode_in_their_file(tmp_path, write, episodes):
    root = write(tmp_path / "set")
    write_rows(next(iter(sorted((root / "data").rglob("*.parquet")))), [{"episode_index": 0, "frame_index": 0}])
    problems = [sample.problem for sample in LeRobot(root) if sample.problem]
    assert [problem.partition(".parquet has no column ")[2] for problem in problems] == ["task_index"] * episodes


def test_a_set_that_counts_no_frames_has_its_rows_for_them(tmp_path):
    """As real sets of version 2.0 are."""
    root = write_v2(tmp_path / "set", version="v2.0", lengths=(5,))
    rows = [{"task_index": row["task_index"]} for row in rows_of(0, 5)]
    write_rows(root / "data/chunk-000/episode_000000.parquet", rows)
    assert [(s.vlm_idx, s.problem) for s in LeRobot(root, vlm_reuse_count=2)] == [(0, None), (2, None), (4, None)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # One frame too few in one camera's part of the file.
        ({"videos/cam.wrist/to_timestamp": 1.1}, "7 rows, and 6 frames of cam.wrist"),
        ({"videos/cam.wrist/from_timestamp": None}, "no video of cam.wrist"),
        ({"length": 6}, "6 rows by the meta files, and 7"),
        ({"data/file_index": 9}, "file-009.parquet cannot be read"),
    ],
)
def test_an_episode_of_version_3_that_contradicts_itself_is_one_problem(tmp_path, changes, said):
    samples = list(LeRobot(write_v3(tmp_path / "set", **changes), vlm_reuse_count=7))
    assert [(s.dataset, bool(s.problem)) for s in samples] == [
        ("set_episode_000000", False),
        ("set_episode_000001", True),
        ("set_episode_000002", False),
    ]
    assert said in samples[1].problem


@pytest.mark.parametrize(("write", "file"), [(write_v2, "episodes.jsonl"), (write_v3, "tasks.parquet")])
def test_a_damaged_meta_file_is_refused_by_name(tmp_path, write, file):
    root = write(tmp_path / "set")
    (root / "meta" / file).write_text("{")
    with pytest.raises(SourceError, match=file):
        LeRobot(root)


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_a_url_and_a_folder_give_equal_steps(tmp_path, write):
    here = list(LeRobot(write(tmp_path / "set"), vlm_reuse_count=2))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/lerobot-test/set", recursive=True)
    try:
        there = list(LeRobot(UrlPath("memory://lerobot-test/set"), vlm_reuse_count=2))
    finally:
        memory.rm("/lerobot-test", recursive=True)
    assert [(s.dataset, s.vlm_idx, s.instruction) for s in here] == [
        (s.dataset, s.vlm_idx, s.instruction) for s in there
    ]
    assert [[i.frame_index for i in s.images] for s in here] == [[i.frame_index for i in s.images] for s in there]
    assert str(there[0].images[0].path).startswith("memory://lerobot-test/set/videos/")
