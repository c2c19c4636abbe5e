"""Damaged pictures: a frame has the same bits whatever was asked for before, or the file is named."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import av
import pytest

from pipeline.errors import MediaError
from pipeline.vision import decoding
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_cuts, decode_frame
from pipeline.vision.open_video import OpenVideo, RecentVideos
from pipeline.vision.sampling import SamplingRule
from tests.pipeline.vision.small_videos import Thumbnail, write_video

FRAMES = 24
X265 = "log-level=none:open-gop=0:keyint=8:min-keyint=8:scenecut=0"
FILES = {
    "h264.mp4": {"options": {"g": "8", "bf": "3"}},
    "h264_cavlc.mkv": {"options": {"g": "8", "bf": "3", "x264-params": "cabac=0:slices=2"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "8", "bf": "2"}},
}
# Of an H.265 picture that ends early ffmpeg says nothing (README, limits); a damaged header does not end it.
DAMAGED_BYTES = {"hevc.mp4": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name, settings in FILES.items():
        write_video(folder / name, frames=FRAMES, width=160, height=128, **settings)
    return folder


def damaged(source: Path, target: Path, seed: int) -> Path:
    """Overwrite some bytes of some pictures with random ones."""
    end = DAMAGED_BYTES.get(source.name)
    chance = random.Random(seed)
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size > 20]
    for _ in range(chance.choice([1, 1, 2, 4])):
        packet = chance.choice(packets)
        place = packet.pos + chance.randrange(6, end or packet.size - 4)
        for i in range(place, min(place + chance.choice([1, 8, 40]), packet.pos + (end or packet.size))):
            content[i] = chance.randrange(256)
    target.write_bytes(content)
    return target


def one_by_one(path: Path, indices) -> dict[int, bytes]:
    """Decode frames as the steps of an episode are, in this order; those that are named are left out."""
    decoding._OPEN_VIDEOS = RecentVideos(capacity=4)
    found = {}
    for index in indices:
        with suppress(MediaError):
            found[index] = decode_frame(path, index).pixels.tobytes()
    return found


def at_once(path: Path, indices) -> dict[int, bytes]:
    """Decode frames as one unit."""
    video = OpenVideo(path)
    try:
        frames, _ = video.first_that_succeeds(lambda reader: [frame.tobytes() for frame in reader.frames(indices)])
    except MediaError:
        return {}
    return dict(zip(indices, frames, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 11, 21])
@pytest.mark.parametrize("name", FILES)
def test_a_frame_has_the_same_bits_whatever_was_asked_before_or_is_named(folder, tmp_path, monkeypatch, name, seed):
    monkeypatch.setattr(decoding, "_OPEN_VIDEOS", None)
    path = damaged(folder / name, tmp_path / name, seed)
    alone: dict[int, bytes] = {}
    for index in range(FRAMES):
        alone |= one_by_one(path, [index])
    chance = random.Random(seed)
    orders = [range(FRAMES), range(FRAMES - 1, -1, -1), range(0, FRAMES, 3), chance.sample(range(FRAMES), FRAMES)]
    for order in orders:
        for found in (one_by_one(path, order), at_once(path, sorted(order))):
            assert [i for i in found if i in alone and found[i] != alone[i]] == []


def test_decord_is_not_asked_to_make_up_damaged_pictures(folder, tmp_path):
    path = damaged(folder / "h264.mp4", tmp_path / "h264.mp4", seed=0)
    with pytest.raises(MediaError, match=r"h264\.mp4: not decodable\. PyAV: frame \d+: [^;]+$"):
        OpenVideo(path).first_that_succeeds(lambda reader: list(reader.frames(range(FRAMES))))


@pytest.mark.parametrize("seed", [1, 2, 16, 18, 24])
def test_a_clip_fares_alike_alone_and_beside_another_where_nobody_can_seek(tmp_path, seed):
    settings = {"frames": 48, "width": 160, "height": 128, "options": {"g": "8", "bf": "3"}}
    path = damaged(write_video(tmp_path / "sound.flv", **settings), tmp_path / "damaged.flv", seed)
    cuts = [Cut(), Cut(0.1, 0.5), Cut(1.0, 2.0)]
    sampling = SamplingRule.parse("source")

    def told(*cuts):
        found = decode_cuts(path, cuts, sampling=sampling, nframe=5, preprocess=Thumbnail())
        return [str(one) if isinstance(one, MediaError) else (one.decoder, one.pixels.tobytes()) for one in found]

    assert told(*cuts) == [told(cut)[0] for cut in cuts]
