"""Folders of numbered images as videos."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import MediaError
from pipeline.vision import SamplingRule
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_frame, decode_video
from pipeline.vision.survey import promised_length
from tests.pipeline.vision.small_videos import Thumbnail, picture


def images(folder, names):
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.fromarray(picture(place, 64, 48)).save(folder / name)
    return folder


def decoded(folder, *, cut=None, sampling="source", **options):
    rule = SamplingRule.parse(sampling)
    return decode_video(folder, sampling=rule, nframe=99, preprocess=Thumbnail(), cut=cut, **options)


def test_images_are_frames_in_the_order_of_their_numbers(tmp_path):
    folder = images(tmp_path / "clip", ["frame_2.png", "frame_10.png", "frame_1.png", "9b.png", "cover.png"])
    (folder / "description_3.txt").write_text("no image")
    video = decoded(folder)
    assert video.num_frames == 4
    assert video.decoder.startswith("pillow ")
    expected = [Thumbnail()(picture(place, 64, 48)) for place in (2, 0, 3, 1)]
    assert np.array_equal(video.pixels, np.stack(expected))
    assert np.array_equal(decode_frame(folder, 3).pixels, picture(1, 64, 48))
    assert promised_length(folder) is None


def test_bounds_count_as_mvbench_counts_its_folders(tmp_path):
    """The images of MVBench begin at 1 and are 3 a second: second 2 is image 6, the sixth."""
    folder = images(tmp_path / "clip", [f"{number:05d}.jpg" for number in range(1, 31)])
    numbers = [index + 1 for index in decoded(folder, cut=Cut(2.0, 4.0), fps=3.0).frame_indices]
    assert numbers == list(range(6, 13))
    assert decoded(folder, cut=Cut(0.0, 0.5), fps=3.0).frame_indices == (0, 1)
    assert decoded(folder, cut=Cut(9.0, 99.0), fps=3.0).frame_indices == (26, 27, 28, 29)


def test_numbering_from_zero_or_from_afar_begins_at_the_videos_start(tmp_path):
    for first in (0, 5000):
        folder = images(tmp_path / str(first), [f"{first + place}.png" for place in range(10)])
        assert decoded(folder, cut=Cut(1.0, 2.0), fps=3.0).frame_indices == (3, 4, 5, 6)


def test_what_needs_a_rate_asks_for_it(tmp_path):
    folder = images(tmp_path / "clip", ["1.png", "2.png"])
    assert decoded(folder).frame_indices == (0, 1)
    with pytest.raises(MediaError, match="clip: a folder of images has no clips unless its frame rate is given"):
        decoded(folder, cut=Cut(0.0, 1.0))
    with pytest.raises(MediaError, match="clip: fps:1 needs the frame rate"):
        decoded(folder, sampling="fps:1")
    assert decoded(folder, sampling="fps:1", fps=2.0).frame_indices == (0,)
    with pytest.raises(MediaError, match="clip: a frame rate must be above 0, got -1"):
        decoded(folder, fps=-1.0)


def test_a_folder_that_is_no_video_is_an_error_that_names_it(tmp_path):
    with pytest.raises(MediaError, match="empty: a folder without numbered images"):
        decoded(images(tmp_path / "empty", ["cover.png"]))
    with pytest.raises(MediaError, match=r"twice: 01\.png and 1\.png have one number"):
        decoded(images(tmp_path / "twice", ["01.png", "1.png"]))


def test_a_damaged_image_is_an_error_unless_partial_frames_are_allowed(tmp_path):
    folder = images(tmp_path / "clip", ["1.png", "2.png", "3.png"])
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    with pytest.raises(MediaError, match=r"clip: not decodable. pillow: frame 1: 2\.png: not a readable image"):
        decoded(folder)
    video = decoded(folder, partial_frames="allow")
    assert video.frame_indices == (0, 2)
    assert (video.partial.asked, video.partial.got) == (3, 2)


def test_the_counters_images_are_read(real_media):
    video = decoded(real_media / "robots" / "raw_counter_frames")
    assert video.num_frames == 30
    assert len({row.tobytes() for row in video.pixels}) > 1
