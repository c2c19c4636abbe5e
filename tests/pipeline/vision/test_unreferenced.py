"""Pictures that nobody refers to, told from the bytes of their packets."""

from __future__ import annotations

import av
import numpy as np
import pytest

from pipeline.vision.survey import survey_video
from pipeline.vision.unreferenced import unreferenced_test
from tests.pipeline.vision.small_videos import write_video

AVC = bytes([1, 100, 0, 31, 0xFF, 0xE1, 0])  # units with 4 bytes of length
HEVC = bytes([1] + 20 * [0] + [0x0F, 0])  # one temporal layer, 4 bytes of length


def unit(*content: int) -> bytes:
    return len(content).to_bytes(4, "big") + bytes(content)


@pytest.mark.parametrize(
    ("extradata", "codec", "packet", "expected"),
    [
        (AVC, "h264", unit(0x01, 9), True),  # slice, nal_ref_idc 0
        (AVC, "h264", unit(0x41, 9), False),  # slice, referenced
        (AVC, "h264", unit(0x65, 9), False),  # keyframe
        (AVC, "h264", unit(0x06, 1, 2) + unit(0x09, 1) + unit(0x01, 9), True),  # behind side information
        (AVC, "h264", unit(0x06, 1, 2), False),  # no picture at all
        (AVC, "h264", b"\0\0\1", False),
        (AVC, "h264", b"", False),
        (HEVC, "hevc", unit(0x00, 1), True),  # TRAIL_N
        (HEVC, "hevc", unit(0x02, 1), False),  # TRAIL_R
        (HEVC, "hevc", unit(0x10, 1), True),  # RASL_N
        (HEVC, "hevc", unit(0x28, 1), False),  # IDR_N_LP: even, and a keyframe
        (HEVC, "hevc", unit(0x4E, 1) + unit(0x00, 1), True),  # behind side information
    ],
)
def test_the_first_picture_of_a_packet_tells(extradata, codec, packet, expected):
    assert unreferenced_test(codec, extradata)(memoryview(packet)) is expected


@pytest.mark.parametrize(
    ("codec", "extradata"),
    [
        ("vp9", None),
        ("h264", None),
        ("h264", b"\0\0\0\1\x67\x64\0\x1f"),  # start codes
        ("hevc", bytes([1] + 20 * [0] + [0x17, 0])),  # two temporal layers
    ],
)
def test_streams_that_cannot_be_told_so_simply_are_left_alone(codec, extradata):
    assert unreferenced_test(codec, extradata) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"bf": "3", "g": "12"}},
        {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0:keyint=12:bframes=3"}},
    ],
)
def test_without_them_all_other_frames_keep_their_bits(tmp_path, settings):
    path = write_video(tmp_path / "a.mp4", frames=30, width=320, height=240, **settings)
    survey = survey_video(path)
    whole, dropped = decoded(path, drop=False)[0], 0
    kept, dropped = decoded(path, drop=True)
    assert dropped > 5, "the encoder made none: the test tests nothing"
    assert len(kept) == survey.num_frames - dropped
    for pts, frame in kept.items():
        assert np.array_equal(frame, whole[pts])


def decoded(path, *, drop):
    frames, dropped = {}, 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        is_unreferenced = unreferenced_test(stream.codec_context.name, stream.codec_context.extradata)
        for packet in container.demux(stream):
            if drop and packet.size and is_unreferenced(memoryview(packet)):
                dropped += 1
                continue
            frames |= {frame.pts: frame.to_ndarray(format="rgb24") for frame in packet.decode()}
    return frames, dropped
