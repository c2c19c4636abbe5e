"""One contract for every source: lazy, ordered, equal twice, unique, picklable; and each one's own rules."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jobs.sample_input import make_sample_input
from pipeline.errors import SourceError
from pipeline.sources import LeRobotV2, StepSample, VideoFolder, VideoMME, VLAEpisodes, open_source


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened by any source")


@pytest.fixture(scope="session")
def sample_input(tmp_path_factory):
    return make_sample_input(tmp_path_factory.mktemp("sample"))


def write_lerobot(root: Path, *, version: str = "v2.1", lengths: tuple[int, ...] = (5, 7)) -> Path:
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": version,
        "chunks_size": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {"cam.front": {"dtype": "video"}, "cam.ghost": {"dtype": "video"}, "state": {"dtype": "float64"}},
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    episodes = [{"episode_index": index, "length": length} for index, length in enumerate(lengths)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(json.dumps(episode) for episode in episodes))
    tasks = [{"task_index": 0, "task": "lift"}, {"task_index": 1, "task": "place"}]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(json.dumps(task) for task in tasks))
    for index, length in enumerate(lengths):
        path = root / f"data/chunk-{index:03d}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True)
        table = pyarrow.table({"task_index": [0] * (length - 1) + [1], "index": list(range(length))})
        pyarrow.parquet.write_table(table, path)
        touch(root / f"videos/chunk-{index:03d}/cam.front/episode_{index:06d}.mp4")
    return root


@pytest.fixture
def sources(sample_input, tmp_path):
    (tmp_path / "mme.json").write_text(json.dumps([{"videoID": "city_h264"}, {"videoID": "forest_vp9"}]))
    return {
        "folder": VideoFolder(sample_input.videos),
        "video-mme": VideoMME(sample_input.videos, tmp_path / "mme.json"),
        "vla": VLAEpisodes(sample_input.episodes),
        "lerobot": LeRobotV2(write_lerobot(tmp_path / "set"), vlm_reuse_count=2),
    }


@pytest.mark.parametrize("kind", ["folder", "video-mme", "vla", "lerobot"])
def test_every_source_gives_equal_unique_picklable_samples_twice(sources, kind):
    source = sources[kind]
    samples = list(source)
    assert samples
    assert list(source) == samples
    assert pickle.loads(pickle.dumps(samples)) == samples
    names = [(s.dataset, s.vlm_idx if isinstance(s, StepSample) else s.video_id) for s in samples]
    assert len(set(names)) == len(names)
    assert all(sample.problem is None for sample in samples)
    # Lazy: one sample can be had without the others.
    assert next(iter(source)) == samples[0]


@pytest.mark.parametrize("kind", ["folder", "video-mme", "vla", "lerobot"])
def test_a_missing_folder_and_a_file_are_refused_by_name(kind, tmp_path):
    touch(tmp_path / "file")
    for place in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(SourceError, match=place.name):
            open_source(kind, place)


class TestVideoFolder:
    def test_order_is_that_of_the_paths_and_others_are_named(self, tmp_path):
        touch(*(tmp_path / name for name in ("b.MP4", "a/c.webm", "notes.txt", ".hidden.mp4", "a/d.mp3")))
        source = VideoFolder(tmp_path)
        assert [sample.relative_path for sample in source] == ["a/c.webm", "b.MP4"]
        assert [(entry.path.name, entry.reason) for entry in source.ignored()] == [
            (".hidden.mp4", "hidden"),
            ("d.mp3", "not a known video extension"),
            ("notes.txt", "not a known video extension"),
        ]

    def test_repeated_stems_get_their_path_and_others_keep_their_stem(self, tmp_path):
        touch(tmp_path / "a/x.mp4", tmp_path / "b/x.mp4", tmp_path / "b/y.mp4")
        assert [sample.video_id for sample in VideoFolder(tmp_path)] == ["a/x", "b/x", "y"]

    def test_two_files_under_one_id_are_both_named(self, tmp_path):
        touch(tmp_path / "x.mp4", tmp_path / "x.mkv")
        with pytest.raises(SourceError, match=r"x\.mkv.*x\.mp4"):
            VideoFolder(tmp_path)

    def test_a_folder_that_contains_itself_ends(self, tmp_path):
        touch(tmp_path / "a/x.mp4")
        (tmp_path / "a/loop").symlink_to(tmp_path)
        assert len({sample.path.resolve() for sample in VideoFolder(tmp_path)}) == 1


class TestVideoMME:
    def rows(self, path: Path, rows: list[dict]) -> Path:
        if path.suffix == ".json":
            path.write_text(json.dumps(rows))
        elif path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            lines = ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows]
            path.write_text("\n".join(lines))
        return path

    @pytest.mark.parametrize("suffix", ["json", "parquet", "tsv"])
    def test_videos_are_unique_in_the_order_of_the_questions(self, tmp_path, suffix):
        touch(tmp_path / "video/Zz-1.mp4", tmp_path / "data/Aa_2.mkv")
        column = "video" if suffix == "tsv" else "videoID"
        rows = [{"video_id": f"{n:03d}", column: name} for n, name in enumerate(["Zz-1", "Zz-1", "Aa_2", "Zz-1"])]
        source = VideoMME(tmp_path, self.rows(tmp_path / f"rows.{suffix}", rows))
        assert [(s.dataset, s.video_id, s.relative_path) for s in source] == [
            ("Video-MME", "Zz-1", "video/Zz-1.mp4"),
            ("Video-MME", "Aa_2", "data/Aa_2.mkv"),
        ]

    def test_the_stated_path_comes_first_and_a_wrong_one_falls_through(self, tmp_path):
        touch(tmp_path / "video/x.mp4", tmp_path / "elsewhere/x.mp4", tmp_path / "video/y.mp4")
        rows = [{"video": "x", "video_path": "./elsewhere/x.mp4"}, {"video": "y", "video_path": "./gone/y.mp4"}]
        source = VideoMME(tmp_path, self.rows(tmp_path / "rows.json", rows))
        assert [s.relative_path for s in source] == ["elsewhere/x.mp4", "video/y.mp4"]

    def test_a_missing_video_is_a_sample_with_a_problem(self, tmp_path):
        (sample,) = VideoMME(tmp_path, self.rows(tmp_path / "rows.json", [{"videoID": "gone"}]))
        assert "gone" in sample.problem

    def test_annotations_cannot_lead_out_of_the_data_folder(self, tmp_path):
        touch(tmp_path / "secret.mp4")
        (tmp_path / "data").mkdir()
        rows = [{"video": "x", "video_path": "../secret.mp4"}]
        (sample,) = VideoMME(tmp_path / "data", self.rows(tmp_path / "rows.json", rows))
        assert sample.problem is not None
        with pytest.raises(SourceError, match="no file name"):
            VideoMME(tmp_path / "data", self.rows(tmp_path / "rows.json", [{"video": "../secret"}]))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("rows.json", "{", "cannot be read"),
            ("rows.json", "[]", "no rows"),
            ("rows.json", '[{"title": 1}]', "title"),
            ("rows.parquet", "PAR1 but not really", "cannot be read"),
            ("rows.tsv", "title\tlength\nx\t1\n", "title, length"),
            ("rows.xlsx", "", "xlsx"),
        ],
    )
    def test_wrong_annotations_are_refused_in_words(self, tmp_path, name, content, said):
        (tmp_path / name).write_text(content)
        with pytest.raises(SourceError, match=said):
            VideoMME(tmp_path, tmp_path / name)

    def test_the_only_annotation_file_is_found_and_two_are_not_guessed_between(self, tmp_path):
        (tmp_path / "videomme").mkdir()
        self.rows(tmp_path / "videomme/test.parquet", [{"videoID": "x"}])
        assert len(list(VideoMME(tmp_path))) == 1
        self.rows(tmp_path / "other.json", [{"videoID": "x"}])
        with pytest.raises(SourceError, match="--annotations"):
            VideoMME(tmp_path)


class TestVLAEpisodes:
    def test_steps_and_images_of_the_new_format(self, sample_input):
        samples = [s for s in VLAEpisodes(sample_input.episodes) if s.dataset == "episode_20251030_025119"]
        # 240 poses, 10 to an action: 23 samples, three to a step.
        assert [s.vlm_idx for s in samples] == [0, 30, 60, 90, 120, 150, 180, 210]
        assert [image.view for image in samples[0].images] == ["left", "right"]
        # Pose 150 is 1.5 s after the first sensor timestamp, not image number 150.
        assert samples[5].images[0].path.name == "ZED_41182735_left_1762725456.500.jpg"
        assert samples[0].instruction == "Perform needle insertion insertion task."

    def test_steps_and_images_of_the_old_format(self, sample_input):
        samples = [s for s in VLAEpisodes(sample_input.episodes) if s.dataset == "recv_all_20251027_170308"]
        assert [s.vlm_idx for s in samples] == [0, 3, 6, 9, 12, 15, 18, 21]
        assert samples[2].images[1].path.relative_to(sample_input.episodes / "old_rig" / samples[2].dataset) == Path(
            "View2/0006.jpg"
        )
        assert samples[0].instruction == "Insert the peg into the hole."

    def test_an_instruction_and_views_from_outside(self, sample_input):
        first = next(iter(VLAEpisodes(sample_input.episodes / "old_rig", instruction="Go.", views=["View2"])))
        assert first.instruction == "Go."
        assert [image.view for image in first.images] == ["View2"]

    def test_paths_of_another_machine_are_found_below_the_episode(self, tmp_path):
        episode = tmp_path / "recv_all_1"
        touch(episode / "cam" / "0.jpg")
        paths = ["C:\\data\\recv_all_1\\cam\\0.jpg", "/home/her/recv_all_1/cam/0.jpg"]
        data = {"action": np.zeros((12, 7)), "image": {"cam": paths}}
        (episode / "data.pkl").write_bytes(pickle.dumps(data))
        for sample in VLAEpisodes(tmp_path, vlm_reuse_count=1):
            assert sample.images[0].path == episode / "cam" / "0.jpg"

    def test_a_bad_episode_is_one_problem_and_its_neighbour_is_whole(self, sample_input, tmp_path):
        shutil.copytree(sample_input.episodes / "old_rig", tmp_path / "rig")
        (tmp_path / "rig" / "recv_all_20251027_170308" / "data.pkl").write_bytes(b"\x80\x04junk")
        samples = list(VLAEpisodes(tmp_path / "rig"))
        problems = [s for s in samples if s.problem]
        assert [s.dataset for s in problems] == ["recv_all_20251027_170308"]
        assert len(samples) == 1 + 8

    def test_an_unknown_view_names_those_there_are(self, sample_input):
        first = next(iter(VLAEpisodes(sample_input.episodes / "old_rig", views=["View9"])))
        assert "View1, View2" in first.problem

    def test_two_episodes_of_one_name_are_both_named(self, sample_input, tmp_path):
        for parent in ("one", "two"):
            shutil.copytree(sample_input.episodes / "old_rig", tmp_path / parent)
        with pytest.raises(SourceError, match=r"one.*two"):
            VLAEpisodes(tmp_path)

    def test_images_equally_near_in_time_give_the_earlier(self, tmp_path):
        episode = tmp_path / "episode_1"
        touch(episode / "images/left/10.0.jpg", episode / "images/left/11.0.jpg")
        (episode / "metadata.json").write_text('{"robot_hz": 100}')
        np.savez(episode / "robot_states.npz", robot_states=np.zeros((100, 12)))
        chosen = {s.vlm_idx: s.images[0].path.stem for s in VLAEpisodes(tmp_path, vlm_reuse_count=1)}
        assert (chosen[40], chosen[50], chosen[60]) == ("10.0", "10.0", "11.0")


class TestLeRobot:
    def test_steps_are_rows_and_each_has_its_own_task(self, tmp_path):
        source = LeRobotV2(write_lerobot(tmp_path / "set"), dataset="pick", vlm_reuse_count=2)
        samples = list(source)
        assert [(s.dataset, s.vlm_idx) for s in samples[:3]] == [("pick_episode_000000", n) for n in (0, 2, 4)]
        assert [s.instruction for s in samples[:3]] == ["lift", "lift", "place"]
        assert samples[3].images[0].path.as_posix().endswith("videos/chunk-001/cam.front/episode_000001.mp4")
        assert samples[1].images[0].frame_index == 2

    def test_a_camera_without_files_is_left_out_and_said(self, tmp_path):
        source = LeRobotV2(write_lerobot(tmp_path / "set"))
        assert [image.view for image in next(iter(source)).images] == ["cam.front"]
        assert [entry.path.name for entry in source.ignored()] == ["cam.ghost"]

    def test_a_version_that_is_not_read_is_refused(self, tmp_path):
        with pytest.raises(SourceError, match=r"v3\.0"):
            LeRobotV2(write_lerobot(tmp_path / "set", version="v3.0"))

    def test_a_missing_parquet_is_one_problem(self, tmp_path):
        root = write_lerobot(tmp_path / "set")
        (root / "data/chunk-000/episode_000000.parquet").unlink()
        samples = list(LeRobotV2(root, vlm_reuse_count=7))
        assert [bool(s.problem) for s in samples] == [True, False]
