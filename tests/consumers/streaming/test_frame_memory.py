"""What becomes a star frame, what leaves, and that pixels come back bit for bit and leave nothing behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from consumers.streaming import FramesOfParent, SmartFrameManager, TimeRunsBackwards, VideoSampler
from tests.consumers.streaming.streams import held_by_another_thread, in_forked_child, video

SIDE = 224
BLACK, WHITE, GREY = (np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 255, 60))
FRAMES = video(6)


def halves(bright: int) -> np.ndarray:
    """The left half black, the right half of one brightness."""
    frame = BLACK.copy()
    frame[:, SIDE // 2 :] = bright
    return frame


def added(manager, *frames) -> list[dict]:
    return [manager.add_frame(frame, manager.total_added / 2) for frame in frames]


def star(manager) -> list[int]:
    return [frame.index for frame in manager._star]


def test_the_score_is_motion_and_complexity():
    first, second = added(SmartFrameManager(), BLACK, halves(100))
    assert (first["importance"], first["reason"], first["added_to_star"]) == (1.0, "first frame", True)
    motion, complexity = 50 / 255, 50 / 128
    assert second["importance"] == pytest.approx(0.7 * motion + 0.3 * complexity, abs=1e-6)
    assert (second["reason"], second["added_to_star"]) == ("", False)
    assert (second["star_count"], second["stream_count"]) == (1, 2)


def test_a_scene_change_is_more_motion_than_the_threshold():
    results = added(SmartFrameManager(), BLACK, GREY, WHITE, GREY)
    assert [result["reason"] for result in results] == ["first frame", "", "scene change", "scene change"]


def test_at_the_default_threshold_nothing_below_a_scene_change_is_important_enough():
    """The most motion that is no scene change, in the most complex picture there is."""
    before = halves(255)
    most = np.clip(before.astype(int) + np.where(before > 0, -76, 76), 0, 255).astype(np.uint8)
    result = added(SmartFrameManager(), most, before)[1]
    assert result["reason"] == ""
    assert 0.5 < result["importance"] <= 0.509


def test_a_threshold_that_importance_can_reach_keeps_moving_pictures():
    manager = SmartFrameManager(importance_threshold=0.25)
    results = added(manager, BLACK, halves(130), halves(130), GREY)
    assert [result["reason"] for result in results] == ["first frame", "importance", "", ""]
    assert star(manager) == [0, 1]


def test_the_least_important_star_leaves_never_the_first():
    manager = SmartFrameManager(star_memory_size=3, stream_window_size=1)
    added(manager, BLACK, WHITE, halves(10), WHITE)
    assert star(manager) == [0, 1, 3]
    added(manager, BLACK, halves(255), WHITE)
    importances = [frame.importance for frame in manager._star]
    assert star(manager)[0] == 0
    assert len(importances) == 3
    assert star(manager)[-1] == 6  # what just entered is not what leaves
    assert manager.get_statistics()["scene_changes"] == 6


@pytest.mark.parametrize(("size", "wanted"), [(0, []), (1, [0])])
def test_small_star_memories(size, wanted):
    manager = SmartFrameManager(star_memory_size=size, stream_window_size=2)
    results = added(manager, BLACK, WHITE, BLACK)
    assert star(manager) == wanted
    assert not results[-1]["added_to_star"]
    assert results[-1]["stream_count"] == 2


def test_the_union_is_unique_by_frame_and_in_time_order():
    manager = SmartFrameManager(star_memory_size=5, stream_window_size=3)
    added(manager, BLACK, GREY, WHITE, WHITE, BLACK, GREY, GREY)
    frames, times, figures = manager.get_all_frames()
    assert times == [0.0, 1.0, 2.0, 2.5, 3.0]
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 255, 0, 60, 60]
    assert figures == {
        "star_frames": 3,
        "stream_frames": 3,
        "unique_frames": 5,
        "overlap_frames": 1,
        "total_added": 7,
        "compression_ratio": 1.4,
        "time_span": 3.0,
        "min_timestamp": 0.0,
        "max_timestamp": 3.0,
    }
    statistics = manager.get_statistics()
    assert statistics["total_frames_added"] == 7
    assert (statistics["star_memory_size"], statistics["stream_memory_size"]) == (3, 3)
    assert statistics["compression_ratio"] == "1.40x"


def test_an_empty_memory_says_so():
    manager = SmartFrameManager()
    frames, times, figures = manager.get_all_frames()
    assert (frames, times, figures["unique_frames"], figures["min_timestamp"]) == ([], [], 0, None)
    assert manager.get_statistics()["compression_ratio"] == "1.00x"


@pytest.mark.parametrize("on_disk", [True, False])
def test_pixels_come_back_bit_for_bit_and_of_the_kind_that_was_given(on_disk):
    manager = SmartFrameManager(use_disk_cache=on_disk)
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    given = noise.copy()
    manager.add_frame(given, 0)
    given[:] = 0  # a camera's buffer is used again
    manager.add_frame(Image.fromarray(noise[::-1]), 1)
    array, image = manager.get_all_frames()[0]
    assert np.array_equal(array, noise)
    assert np.array_equal(np.asarray(image), noise[::-1])
    assert isinstance(image, Image.Image)
    array[:] = 0
    assert np.array_equal(manager.get_all_frames()[0][0], noise)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_files_go_with_their_frames_and_with_the_manager(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()
    before = open_files()
    manager = SmartFrameManager(star_memory_size=2, stream_window_size=3)
    added(manager, *video(30))
    assert open_files() - before == 1  # whatever the number of frames
    assert manager.get_statistics()["pixel_bytes"] == len(manager.union()) * 56 * 84 * 3
    assert os.listdir(tmp_path) == []  # they have no names
    manager.reset()
    assert open_files() == before
    added(manager, *video(3))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        del manager
        gc.collect()
    assert open_files() == before
    assert warned == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_the_file_is_as_long_as_the_frames_that_were_held_at_once():
    manager, held = SmartFrameManager(star_memory_size=2, stream_window_size=3), []
    for index in range(60):
        manager.add_frame(video(1, height=28 * (1 + index % 3), seed=index)[0], index)
        held.append(manager.get_statistics()["pixel_bytes"])
    assert os.fstat(manager._pixels._file.fileno()).st_size <= 2 * max(held)
    for frame in manager.union():
        assert np.array_equal(manager.pixels(frame), video(1, height=28 * (1 + frame.index % 3), seed=frame.index)[0])


def test_a_killed_process_leaves_no_frames_behind(tmp_path):
    code = (
        "import os, signal, numpy as np\n"
        "from consumers.streaming.frame_memory import SmartFrameManager\n"
        "manager = SmartFrameManager()\n"
        "for i in range(5): manager.add_frame(np.full((9, 9, 3), i, np.uint8), i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_and_the_memory_goes_on():
    manager = SmartFrameManager()
    added(manager, BLACK)
    manager.add_frame(GREY, 5.0)
    with pytest.raises(TimeRunsBackwards, match=r"4.0 s came after one at 5.0 s"):
        manager.add_frame(WHITE, 4.0)
    with pytest.raises(ValueError, match="finite"):
        manager.add_frame(WHITE, float("inf"))
    with pytest.raises(ValueError, match="uint8"):
        manager.add_frame(np.zeros((4, 4, 3)), 6.0)
    assert manager.total_added == 2
    assert manager.add_frame(GREY, 5.0)["stream_count"] == 3
    for wrong in ({"star_memory_size": -1}, {"stream_window_size": 0}):
        with pytest.raises(ValueError, match="at least"):
            SmartFrameManager(**wrong)
    for wrong in ("importance_threshold", "scene_change_threshold"):
        with pytest.raises(ValueError, match=r"must be numbers, got .*nan"):
            SmartFrameManager(**{wrong: float("nan")})


def pixels_of(manager) -> list[bool]:
    return [np.array_equal(manager.pixels(frame), FRAMES[frame.index]) for frame in manager.union()]


def test_a_forked_child_leaves_frames_on_disk_to_its_parent():
    manager = SmartFrameManager(star_memory_size=2, stream_window_size=2)
    added(manager, *FRAMES[:4])

    def in_child():
        for use in (lambda: added(manager, BLACK), lambda: manager.pixels(manager.union()[0])):
            with pytest.raises(FramesOfParent, match="reset"):
                use()
        assert manager.total_added == 4
        manager.reset()
        added(manager, BLACK, WHITE)
        assert all(np.array_equal(manager.pixels(f), w) for f, w in zip(manager.union(), (BLACK, WHITE), strict=True))

    with held_by_another_thread(manager._pixels._lock):
        assert in_forked_child(in_child)
    assert all(pixels_of(manager))
    added(manager, *FRAMES[4:6])
    assert all(pixels_of(manager))


def test_a_forked_child_goes_on_with_its_own_copy_of_frames_in_memory():
    manager = SmartFrameManager(use_disk_cache=False)
    added(manager, *FRAMES[:4])

    def in_child():
        added(manager, *FRAMES[4:6])
        assert all(pixels_of(manager))

    assert in_forked_child(in_child)
    assert manager.total_added == 4


def test_the_sampler_takes_one_frame_from_each_slot_of_time():
    times = [0.0, 0.1, 0.4, 0.5, 0.9, 1.6, 1.7]
    frames, kept, spacing = VideoSampler(target_fps=2).sample(list("abcdefg"), times)
    assert (frames, kept) == (["a", "d", "f"], [0.0, 0.5, 1.6])
    assert spacing == pytest.approx(1.6 / 1.5)
    # What is chosen early does not depend on what comes late.
    assert VideoSampler(target_fps=2).choose(times[:5]) == [0, 3]


def test_the_sampler_thins_evenly_and_keeps_absolute_time():
    times = [i / 2 for i in range(100)]
    frames, kept, spacing = VideoSampler(max_sampled_frames=4).sample(range(100), times)
    assert frames == [0, 33, 66, 99]
    assert kept == [0.0, 16.5, 33.0, 49.5]
    assert spacing == pytest.approx(49.5 / 2)
    assert VideoSampler().sample([], []) == ([], [], 0.0)
    assert VideoSampler(max_sampled_frames=1).choose(times) == [0]


@pytest.mark.parametrize("wrong", [{"target_fps": "2"}, {"max_sampled_frames": 2.5}, {"max_sampled_frames": None}])
def test_a_sampler_of_what_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a"):
        VideoSampler(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"star_memory_size": 2.5}, {"stream_window_size": None}, {"importance_threshold": "0.5"}]
)
def test_a_memory_of_what_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a"):
        SmartFrameManager(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"target_fps": 0}, {"target_fps": float("inf")}, {"target_fps": 1e300}, {"max_sampled_frames": 0}]
)
def test_a_sampler_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        VideoSampler(**wrong)
    with pytest.raises(ValueError, match="2 frames came with 1"):
        VideoSampler().sample([1, 2], [0.0])
