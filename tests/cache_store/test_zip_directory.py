"""The directory that is read by hand says what zipfile says, or nothing, whatever the bytes."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import FeatureStore, StepKey
from cache_store.zip_directory import _END, _TAIL_BYTES, _plain, read_directory


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with FeatureStore(tmp_path_factory.mktemp("store")) as store:
        path = store.put(StepKey("e", 0), torch.zeros(1, 1, 64), recipe={"family": "test"})
    return path.read_bytes()


def told_by_zipfile(path):
    with zipfile.ZipFile(path) as archive:
        entries = [
            (one.filename, one.header_offset, one.file_size, one.compress_size, one.compress_type, one.CRC)
            for one in archive.infolist()
        ]
        return entries, archive.start_dir


def plain(path):
    with open(path, "rb") as file:
        return _plain(file.fileno())


def test_a_file_of_ours_needs_no_zipfile(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    found = plain(path)
    assert ([tuple(entry) for entry in found.entries], found.begins_at) == told_by_zipfile(path)
    assert len(found.entries) > 3


def test_a_long_directory_is_read_whole(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(200):
            archive.writestr(f"folder/{number:04d}", b"x" * number)
    found = plain(tmp_path / "x.zip")
    assert _TAIL_BYTES < 200 * 50
    assert ([tuple(entry) for entry in found.entries], found.begins_at) == told_by_zipfile(tmp_path / "x.zip")


@pytest.mark.parametrize("kind", ["comment", "prefix", "zip64", "name", "encrypted", "empty", "text", "nothing"])
def test_what_is_unusual_is_left_to_zipfile(kind, content, tmp_path):
    path = tmp_path / "x.pt"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with archive.open("größe" if kind == "name" else "a", "w", force_zip64=kind == "zip64") as record:
            record.write(b"abc")
        archive.comment = b"of somebody else" if kind == "comment" else b""
    changed = {"prefix": b"#!" + buffer.getvalue(), "empty": b"", "text": b"a" * 100, "nothing": b"PK"}
    whole = bytearray(changed.get(kind, buffer.getvalue()))
    if kind == "zip64":
        whole[-_END.size + 10 : -_END.size + 12] = b"\xff\xff"
    if kind == "encrypted":
        directory_at = struct.unpack_from("<L", whole, len(whole) - 6)[0]
        whole[directory_at + 8] |= 1
    path.write_bytes(whole)
    assert plain(path) is None
    if kind in ("comment", "prefix", "name", "encrypted"):
        with open(path, "rb") as file:
            assert [entry.bytes for entry in read_directory(file).entries] == [3]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_changed_bytes_never_say_something_else_than_zipfile(content, tmp_path_factory, data):
    changed = bytearray(content)
    begins_at = struct.unpack_from("<L", content, len(content) - 6)[0]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(begins_at, len(content) - 1))
        changed[place] = data.draw(st.sampled_from([0, 1, 2, 0x20, 0x7F, 0x80, 0xFF]))
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(changed[: data.draw(st.sampled_from([len(changed), len(changed) - 1]))])
    found = plain(path)
    if found is not None:
        assert ([tuple(entry) for entry in found.entries], found.begins_at) == told_by_zipfile(path)
