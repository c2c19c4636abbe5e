"""One contract for every source: lazy, ordered, equal twice, unique, picklable; and each one's own rules."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.sample_input import make_sample_input
from pipeline.errors import SourceError
from pipeline.sources import (
    BENCHMARKS,
    STEP_SOURCES,
    VIDEO_SOURCES,
    Benchmark,
    LeRobot,
    StepSample,
    VideoFolder,
    VLAEpisodes,
    open_source,
)
from tests.pipeline.sources.files import touch, write_rows
from tests.pipeline.sources.test_lerobot import write_v2, write_v3


def video_mme(*arguments, **options) -> Benchmark:
    return Benchmark(BENCHMARKS["video-mme"], *arguments, **options)


@pytest.fixture(scope="session")
def sample_input(tmp_path_factory):
    return make_sample_input(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def sources(sample_input, tmp_path):
    (tmp_path / "mme.json").write_text(json.dumps([{"videoID": "city_h264"}, {"videoID": "forest_vp9"}]))
    rows = [{"video": "city_h264.mp4", "prefix": ".", "bound": True, "start": n, "end": 3.5} for n in (0, 0.5, 0)]
    return {
        "mvbench": Benchmark(BENCHMARKS["mvbench"], sample_input.videos, write_rows(tmp_path / "mv.tsv", rows)),
        "folder": VideoFolder(sample_input.videos),
        "video-mme": video_mme(sample_input.videos, tmp_path / "mme.json"),
        "vla": VLAEpisodes(sample_input.episodes),
        "lerobot": LeRobot(write_v2(tmp_path / "set"), vlm_reuse_count=2),
        "lerobot v3": LeRobot(write_v3(tmp_path / "set3"), vlm_reuse_count=2),
    }


@pytest.mark.parametrize("kind", ["folder", "video-mme", "mvbench", "vla", "lerobot", "lerobot v3"])
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


@pytest.mark.parametrize("kind", VIDEO_SOURCES + STEP_SOURCES)
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

    def test_a_link_to_itself_is_a_video_that_will_fail_and_not_the_end_of_the_listing(self, tmp_path):
        touch(tmp_path / "a.mp4")
        (tmp_path / "circle.mp4").symlink_to("circle.mp4")
        assert [sample.video_id for sample in VideoFolder(tmp_path)] == ["a", "circle"]


class TestVideoMME:
    @pytest.mark.parametrize("suffix", ["json", "parquet", "tsv"])
    def test_videos_are_unique_in_the_order_of_the_questions(self, tmp_path, suffix):
        touch(tmp_path / "video/Zz-1.mp4", tmp_path / "data/Aa_2.mkv")
        column = "video" if suffix == "tsv" else "videoID"
        rows = [{"video_id": f"{n:03d}", column: name} for n, name in enumerate(["Zz-1", "Zz-1", "Aa_2", "Zz-1"])]
        source = video_mme(tmp_path, write_rows(tmp_path / f"rows.{suffix}", rows))
        assert [(s.dataset, s.video_id, s.relative_path) for s in source] == [
            ("Video-MME", "Zz-1", "video/Zz-1.mp4"),
            ("Video-MME", "Aa_2", "data/Aa_2.mkv"),
        ]

    def test_the_stated_path_comes_first_and_a_wrong_one_falls_through(self, tmp_path):
        touch(tmp_path / "video/x.mp4", tmp_path / "elsewhere/x.mp4", tmp_path / "video/y.mp4")
        rows = [{"video": "x", "video_path": "./elsewhere/x.mp4"}, {"video": "y", "video_path": "./gone/y.mp4"}]
        source = video_mme(tmp_path, write_rows(tmp_path / "rows.json", rows))
        assert [s.relative_path for s in source] == ["elsewhere/x.mp4", "video/y.mp4"]

    def test_a_missing_video_is_a_sample_with_a_problem(self, tmp_path):
        (sample,) = video_mme(tmp_path, write_rows(tmp_path / "rows.json", [{"videoID": "gone"}]))
        assert "gone" in sample.problem

    def test_annotations_cannot_lead_out_of_the_data_folder(self, tmp_path):
        touch(tmp_path / "secret.mp4")
        (tmp_path / "data").mkdir()
        rows = [{"video": "x", "video_path": "../secret.mp4"}]
        (sample,) = video_mme(tmp_path / "data", write_rows(tmp_path / "rows.json", rows))
        assert sample.problem is not None
        with pytest.raises(SourceError, match="no file name"):
            video_mme(tmp_path / "data", write_rows(tmp_path / "rows.json", [{"video": "../secret"}]))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("rows.json", "{", "cannot be read"),
            ("rows.json", "[" * 100_000, "cannot be read"),
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
            video_mme(tmp_path, tmp_path / name)

    def test_the_only_annotation_file_is_found_and_two_are_not_guessed_between(self, tmp_path):
        (tmp_path / "videomme").mkdir()
        write_rows(tmp_path / "videomme/test.parquet", [{"videoID": "x"}])
        assert len(list(video_mme(tmp_path))) == 1
        write_rows(tmp_path / "other.json", [{"videoID": "x"}])
        with pytest.raises(SourceError, match="--annotations"):
            video_mme(tmp_path)


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

    def test_a_folder_of_both_formats_is_one_problem_that_names_both_files(self, sample_input, tmp_path):
        shutil.copytree(sample_input.episodes / "old_rig", tmp_path / "rig")
        (tmp_path / "rig" / "recv_all_20251027_170308" / "metadata.json").write_text("{}")
        first, *others = VLAEpisodes(tmp_path / "rig")
        assert "both data.pkl (old format) and metadata.json (new format)" in first.problem
        assert len(others) == 8
        assert not any(sample.problem for sample in others)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("metadata.json", b'{"robot_hz": null}'),
            ("metadata.json", b'{"sensor_hz": NaN}'),
            ("metadata.json", b"[" * 100_000),
            ("metadata.json", b'{"instruction": "\\ud800"}'),
            ("robot_states.csv", b"\xff\xfe"),
            ("robot_states.csv", b'time\n"' + b"x" * 200_000),
            ("sensor_data_1.npz", b"no archive"),  # only the image of a step needs it
            ("data.pkl", pickle.dumps({"action": [[1, 2], [3]], "image": {}})),
            ("data.pkl", pickle.dumps({"action": "left", "image": {}})),
            ("data.pkl", pickle.dumps({"action": [[0.0] * 7] * 20, "image": {"View1": 5}})),
            ("data.pkl", pickle.dumps({"action": [[0.0] * 7] * 20, "image": np.array(["a", "b"])})),
            ("data.pkl", pickle.dumps({"action": [[0.0] * 7] * 20, "instruction": np.array(["a", "b"])})),
            ("metadata.json", b'{"instruction": ["Insert it."]}'),
        ],
        ids=[
            *("rate", "nan", "depth", "surrogate", "no text", "long field", "sensor", "ragged", "word", "no list"),
            *("array of images", "array of instructions", "list of instructions"),
        ],
    )
    def test_no_damage_of_an_episode_reaches_its_neighbours(self, tmp_path, name, content):
        for episode in (tmp_path / "episode_1", tmp_path / "episode_2"):
            touch(episode / "images/left/10.0.jpg")
            (episode / "metadata.json").write_text("{}")
            rows = "\n".join(["pose_x", *"0123456789"] * 4)
            (episode / "robot_states.csv").write_text(rows)
        (tmp_path / "episode_1" / name).write_bytes(content)
        samples = list(VLAEpisodes(tmp_path))
        assert [s.dataset for s in samples if s.problem] == ["episode_1"]
        assert {s.dataset for s in samples if not s.problem} == {"episode_2"}

    @pytest.mark.parametrize("start_s", [np.nan, np.inf])
    def test_an_episode_that_begins_at_no_time_is_a_problem(self, tmp_path, start_s):
        touch(tmp_path / "episode_1/images/left/10.0.jpg", tmp_path / "episode_1/images/left/11.0.jpg")
        (tmp_path / "episode_1/metadata.json").write_text("{}")
        np.savez(tmp_path / "episode_1/robot_states.npz", robot_states=np.zeros((100, 12)))
        np.savez(tmp_path / "episode_1/sensor_data.npz", timestamps=np.array([start_s, 10.0]))
        (sample,) = VLAEpisodes(tmp_path)
        assert f"sensor_data.npz: the first of its timestamps is {start_s}" in sample.problem

    def test_an_image_path_that_no_disk_can_hold_is_a_missing_image(self, tmp_path):
        (tmp_path / "recv_all_1").mkdir()
        data = {"action": np.zeros((9, 7)), "image": {"View1": ["x" * 5000 + ".jpg", "a\0b.jpg"]}}
        (tmp_path / "recv_all_1" / "data.pkl").write_bytes(pickle.dumps(data))
        assert [s.problem for s in VLAEpisodes(tmp_path)] == [None]

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
