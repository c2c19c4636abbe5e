"""Reading returns the very bits that were put, in full or in part, fast or with care, or a named miss."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_store import StepKey, VideoKey, codec, fast_read, feature_file, pickle_layout
from cache_store.archive import Record
from cache_store.checksum import crc32
from cache_store.pickle_layout import TensorPlace, UnknownLayout
from tests.cache_store.conftest import tensor

KEY = StepKey("episode", 0)
VIDEO = VideoKey("videos", "a", 8, "0" * 8)
LARGE = torch.arange(8 * 100 * 128, dtype=torch.float32).reshape(8, 100, 128).half()
RECIPE = {"weights": "a"}
DTYPES = [getattr(torch, name) for name in pickle_layout.STORAGE_OF]


def bits(value):
    return value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_an_empty_tensor_is_read_in_every_way(store, dtype, shape):
    empty = torch.empty(shape, dtype=dtype)
    store.put(KEY, empty)
    store.put(VIDEO, {"vision_features": torch.ones(2, 3), "boxes": empty})
    for _ in range(2):
        assert same(store.get(KEY), empty)
        assert same(store.get(KEY, mmap=True), empty)
        assert same(store.get(KEY, frames=slice(0, 1)), empty[0:1])
        out = torch.empty(shape, dtype=dtype)
        assert store.get(KEY, out=out) is out
        assert same(store.get_batch([KEY, KEY]).features[1], empty)
        assert same(store.get(VIDEO)["boxes"], empty)
        store.pack()
    store.unpack()


@pytest.fixture
def video(store):
    store.put(VIDEO, {"vision_features": LARGE, "nframe": 8}, recipe=RECIPE)
    return store


def test_importing_the_store_does_not_import_torch():
    code = "import cache_store, sys; print(sorted({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in shown
    assert "pyarrow" not in shown


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bits_of_any_dtype_survive_and_torch_reads_the_same(dtype, shape, seed):
    raw = torch.randint(0, 256, (int(np.prod(shape)) * 16,), generator=torch.Generator().manual_seed(seed))
    value = raw.to(torch.uint8)
    if dtype is torch.bool:
        value = value % 2
    numel = int(np.prod(shape))
    item = torch.empty(0, dtype=dtype).element_size()
    value = value[: numel * item].view(dtype).reshape(shape)
    content = b"".join(codec.encode({"x": value, "n": [1, None]}, record=Record()))
    assert zipfile.ZipFile(BytesIO(content)).testzip() is None
    assert same(torch.load(BytesIO(content), weights_only=True)["x"], value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text() | st.integers(-5, 2**40), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_what_is_emitted_is_what_pickle_reads_and_what_is_parsed(tree):
    content = pickle_layout.emit(tree)
    assert pickle.loads(content) == tree
    assert pickle_layout.parse(content) == tree
    assert pickle_layout.parse(pickle.dumps(tree, protocol=2)) == tree


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="older versions lay files out otherwise"
)
@pytest.mark.parametrize(
    "value", [tensor(1), torch.zeros(3, 0, 2), torch.tensor(2.5), torch.arange(300).reshape(2, 150)]
)
def test_up_to_the_tensor_a_file_is_laid_out_as_torch_lays_it_out(value):
    theirs, ours = BytesIO(), b"".join(codec.encode(value, record=Record()))
    torch.save(value, theirs)
    names = ["archive/data.pkl", "archive/.format_version", "archive/.storage_alignment", "archive/byteorder"]
    archives = [zipfile.ZipFile(theirs), zipfile.ZipFile(BytesIO(ours))]
    for name in names[1:]:
        assert archives[0].read(name) == archives[1].read(name)
    for archive, content in zip(archives, (theirs.getvalue(), ours), strict=True):
        info = archive.getinfo("archive/data/0")
        name_bytes, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
        assert (info.header_offset + 30 + name_bytes + extra) % 64 == 0


def test_a_changed_layout_of_torch_falls_back_to_torch_save(store, monkeypatch):
    monkeypatch.setattr(codec, "_torch_reads_our_layout", lambda: False)
    path = store.put(KEY, tensor(1), recipe=RECIPE)
    assert same(torch.load(path, weights_only=True), tensor(1))
    assert same(store.get(KEY, recipe=RECIPE), tensor(1))


def test_every_flipped_byte_gives_the_right_value_or_a_counted_miss(open_store):
    store = open_store()
    value = tensor(5, 40)
    store.put(StepKey("sound", 0), value, recipe=RECIPE)
    store.get(StepKey("sound", 0))  # so that the fast way knows the head
    path = store.put(KEY, value, recipe=RECIPE)
    sound = path.read_bytes()
    misses = 0
    for position in range(len(sound)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(sound)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            found = store.get(KEY)
            misses += found is None
            assert found is None or same(found, value), position
            assert path.exists() == (found is not None)
    assert misses > 2 * len(bits(value))
    assert store.stats().damaged == misses
    path.unlink(missing_ok=True)


def test_every_truncation_is_a_counted_miss(open_store):
    store = open_store()
    store.put(StepKey("sound", 0), tensor(5))
    store.get(StepKey("sound", 0))
    path = store.put(KEY, tensor(6))
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert store.get(KEY) is None, length
    assert store.stats().damaged == len(sound)


def test_a_file_that_lost_or_gained_bytes_never_gives_another_value(store):
    store.put(StepKey("sound", 0), tensor(5))
    store.get(StepKey("sound", 0))
    path = store.put(KEY, tensor(6))
    sound = path.read_bytes()
    for position in range(1, len(sound), 7):
        for changed in (sound[:position] + sound[position + 1 :], sound[:position] + b"x" + sound[position:]):
            path.write_bytes(changed)
            assert store.get(KEY) is None, position
    path.write_bytes(b"x" + sound)  # which a zip may have in front of it
    assert same(store.get(KEY), tensor(6))


def test_a_tensor_that_does_not_lie_where_the_directory_says_is_a_miss(store):
    path = store.put(KEY, {"a": tensor(1), "b": tensor(2)})
    sound = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = [archive.getinfo(f"archive/data/{n}").header_offset for n in (0, 1)]
    swapped = sound.replace(
        struct.pack("<I", places[0]) + b"archive/data/0", struct.pack("<I", places[1]) + b"archive/data/0"
    )
    assert swapped != sound
    path.write_bytes(swapped)
    assert store.get(KEY, check="size") is None


def test_the_fast_way_is_taken_and_sees_the_recipe(store, monkeypatch):
    for index in range(3):
        store.put(StepKey("episode", index), tensor(index), recipe=RECIPE)
    store.get(KEY)
    careful = []
    monkeypatch.setattr(fast_read.FastReader, "learn", lambda *_: careful.append(1))
    assert same(store.get(StepKey("episode", 1)), tensor(1))
    assert same(store.get(StepKey("episode", 2), recipe=RECIPE), tensor(2))
    assert not careful
    assert store.get(StepKey("episode", 2), recipe={"weights": "b"}, on_stale="miss") is None
    assert store.get(StepKey("episode", 7)) is None
    store.close()
    assert (store.stats().hits, store.stats().misses) == (3, 2)


def test_heads_of_many_models_are_told_apart(store):
    shapes = [(1, 1, width) for width in range(8, 200, 8)]
    for _ in range(2):
        for index, shape in enumerate(shapes):
            store.put(StepKey("episode", index), torch.full(shape, float(index)))
            store.put(StepKey("half", index), {"x": torch.full(shape, float(index)).bfloat16(), "n": index})
        for index, shape in enumerate(shapes):
            assert same(store.get(StepKey("episode", index)), torch.full(shape, float(index)))
            found = store.get(StepKey("half", index))
            assert found["n"] == index
            assert same(found["x"], torch.full(shape, float(index)).bfloat16())


def test_a_buffer_of_the_caller_is_filled_and_takes_the_tensors_place(video):
    out = torch.empty_like(LARGE)
    for check in ("size", "once", "always"):
        out.zero_()
        found = video.get(VIDEO, out=out, check=check)
        assert found["vision_features"] is out
        assert found["nframe"] == 8
        assert same(out, LARGE)
    bare = torch.empty(1, 1, 64, dtype=torch.float16)
    video.put(KEY, tensor(3))
    assert video.get(KEY, out=bare) is bare
    assert same(bare, tensor(3))


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(8, 100, 128),
        torch.empty(8, 100, 127, dtype=torch.float16),
        torch.empty(128, 100, 8, dtype=torch.float16).transpose(0, 2),
        torch.empty(8, 100, 128, dtype=torch.float16, device="meta"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused_and_the_feature_stays(video, out):
    with pytest.raises(ValueError, match="out is"):
        video.get(VIDEO, out=out)
    assert video.contains(VIDEO)


@pytest.mark.parametrize("frames", [[0], [7, 0, 3, 3], [-1, -8], slice(2, 5), slice(None, None, -2), [], [4, 5, 6]])
def test_chosen_frames_are_the_rows_of_the_whole(video, frames, tmp_path):
    rows = list(range(8))[frames] if isinstance(frames, slice) else [row % 8 for row in frames]
    found = video.get(VIDEO, frames=frames)["vision_features"]
    assert same(found, LARGE[rows])
    out = torch.empty_like(LARGE[rows])
    assert video.get(VIDEO, frames=frames, out=out)["vision_features"] is out
    assert same(out, LARGE[rows])
    video.delete(VIDEO)
    torch.save({"vision_features": LARGE.transpose(1, 2), "nframe": 8}, video.path_of(VIDEO))  # strides: torch's way
    assert same(video.get(VIDEO, frames=frames)["vision_features"], LARGE.transpose(1, 2)[rows].contiguous())


@pytest.mark.parametrize(
    "frames", [np.array([0]), np.array([5, 0, -1]), torch.tensor([0]), torch.tensor([2, 7]), (np.int64(3),)]
)
def test_frames_may_be_chosen_by_arrays_and_tensors(video, frames):
    assert same(video.get(VIDEO, frames=frames)["vision_features"], LARGE[[int(row) for row in frames]])


@pytest.mark.parametrize(
    "frames",
    [0, np.int64(0), torch.tensor(0), {0}, iter([0]), "0", [True, False], np.array([True]), torch.tensor([True]),
     [np.True_], [torch.tensor(True)], [2.0], np.array([0.5]), torch.tensor([1.0]), [[0]], [None]],
)  # fmt: skip
def test_frames_that_are_no_whole_numbers_are_refused_by_name(video, frames):
    with pytest.raises(ValueError, match=r"frames .*; give a slice or a sequence of whole numbers"):
        video.get(VIDEO, frames=frames)
    assert video.contains(VIDEO)


def test_a_frame_that_is_not_there_is_an_index_error(video):
    for frame in (8, -9):
        with pytest.raises(IndexError, match="8 frames"):
            video.get(VIDEO, frames=[frame])
    with pytest.raises(ValueError, match="check"):
        video.get(VIDEO, check="never")
    video.put(KEY, {"a": tensor(1)})
    with pytest.raises(ValueError, match="vision_features"):
        video.get(KEY, frames=[0])


def flip_in_payload(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    before = os.stat(path)
    path.write_bytes(content)
    return before


def test_a_large_file_is_checked_once_by_a_process_and_again_when_it_changes(video, monkeypatch):
    monkeypatch.setattr(feature_file, "_verified", set())
    path = video.path_of(VIDEO)
    assert video.get(VIDEO) is not None
    before = flip_in_payload(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert video.get(VIDEO) is not None  # same inode, size and time: taken for the file that was verified
    assert video.get(VIDEO, check="always") is None
    video.put(VIDEO, {"vision_features": LARGE, "nframe": 8}, recipe=RECIPE)
    flip_in_payload(path)
    assert video.get(VIDEO, check="size") is not None
    assert video.get(VIDEO) is None


def test_a_mapped_feature_is_equal_private_and_outlives_the_file(video, monkeypatch):
    found = video.get(VIDEO, mmap=True)["vision_features"]
    assert same(found, LARGE)
    found[0] = 0
    assert same(video.get(VIDEO)["vision_features"], LARGE)
    video.delete(VIDEO)
    assert same(found[1:], LARGE[1:])
    video.put(VIDEO, {"vision_features": LARGE, "nframe": 8})
    mapped = []
    monkeypatch.setattr(feature_file.mmap, "mmap", lambda *_, **__: mapped.append(1))
    monkeypatch.setattr(feature_file, "is_on_local_disk", lambda _: False)
    assert same(video.get(VIDEO, mmap=True)["vision_features"], LARGE)
    assert not mapped


def test_views_and_strides_of_old_scripts_are_read_as_torch_reads_them(store):
    batch = torch.arange(60.0).reshape(3, 4, 5)
    for index, value in enumerate(
        [batch[1], batch.transpose(0, 2), batch[:, ::2], batch[1, 1], {"a": batch, "b": batch}]
    ):
        path = store.root / f"old_vlm{index}.pt"
        torch.save(value, path)
        found, expected = store.get(StepKey("old", index)), torch.load(path, weights_only=True)
        for one, other in zip(*((v.values() if isinstance(v, dict) else [v]) for v in (found, expected)), strict=True):
            assert torch.equal(one, other)


def test_the_format_before_zip_is_a_named_miss(store, caplog):
    torch.save(tensor(1), store.root / "old_vlm0.pt", _use_new_zipfile_serialization=False)
    assert store.get(StepKey("old", 0)) is None
    assert "not a complete zip archive" in caplog.text


class Call:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def bomb():
    value = [1]
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Call(os.system, "true"), protocol=2),
        pickle.dumps(Call(eval, "1"), protocol=2),
        pickle.dumps(OrderedDict(a=1), protocol=2),
        pickle.dumps(bomb(), protocol=2),
        pickle.dumps(nested(60), protocol=2),
        pickle.dumps(b"x", protocol=2),
        pickle.dumps({1.5: 2}, protocol=2),
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02(K\x01",
        b"",
        b"\x80\x02N" * 1000,
        b"\x80\x02" + b"x" * (1 << 21),
        pickle_layout.emit(TensorPlace("0", "float32", (2,))).replace(b"cpu", b"cud"),
        pickle_layout.emit(TensorPlace("0", "float32", (2,))).replace(b"QK\x00", b"QK\x01"),
        pickle_layout.emit(TensorPlace("../0", "float32", (2,))),
        pickle_layout.emit({"a": TensorPlace("0", "float32", (2,)), "b": TensorPlace("0", "float32", (2,))}),
        pickle_layout.emit(TensorPlace("0", "float32", (2,))).replace(b"QK\x00(K\x02t", b"QK\x00(K\x03t"),
    ],
)
def test_anything_but_plain_tensors_in_plain_containers_is_an_unknown_layout(content):
    with pytest.raises(UnknownLayout):
        pickle_layout.parse(content)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_make_the_parser_fail_in_another_way(noise, position):
    sound = pickle_layout.emit({"a": TensorPlace("0", "float16", (1, 1, 4)), "b": [1, "x"]})
    mixed = sound[: position % len(sound)] + noise + sound[position % len(sound) + len(noise) :]
    try:
        pickle_layout.places(pickle_layout.parse(mixed))
    except UnknownLayout:
        return


def test_a_reader_that_meets_larger_files_widens_its_buffer(store):
    for index, width in enumerate((64, 9000, 20_000, 40_000)):
        key = StepKey("episode", index)
        store.put(key, tensor(index, width))
        for _ in range(3):
            assert same(store.get(key), tensor(index, width))


@given(content=st.binary(max_size=70_000), before=st.integers(0, 2**32 - 1))
def test_checksums_are_those_of_zlib_whoever_computes_them(content, before):
    assert crc32(memoryview(content), before) == zlib.crc32(content, before)
    assert crc32(content) == zlib.crc32(content)


def test_a_store_is_read_without_the_package_of_fast_checksums(store):
    store.put(KEY, tensor(0))
    code = (
        "import sys; sys.modules['zlib_ng'] = None\n"
        "from cache_store import FeatureStore, StepKey, checksum\n"
        "import zlib; assert checksum.crc32 is zlib.crc32\n"
        "print(FeatureStore(sys.argv[1]).get(StepKey('episode', 0)) is not None)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(store.root)], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"
