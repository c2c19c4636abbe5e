"""A feature file is what torch.load understands, the same bytes every time, and tells when it is damaged."""

from __future__ import annotations

import hashlib
import zipfile

import pytest
import torch

from cache_store import DamagedFeature, codec, describe
from cache_store.archive import Record, check, read_record
from cache_store.codec import decode
from tests.cache_store.conftest import tensor

RECORD = Record({"kind": "step", "dataset": "a", "vlm_idx": 0}, {"layer": -2}, "ab" * 32, {"host": "x"})
NESTED = {"x": tensor(1), "t": (tensor(2), [1, 2.5, None, True, "s"]), 3: tensor(4).bfloat16()}


def encode(value, record=RECORD):
    return b"".join(codec.encode(value, record=record))


def written(tmp_path, value, record=RECORD):
    path = tmp_path / "feature.pt"
    path.write_bytes(encode(value, record))
    return path


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_plain_torch_load_returns_the_structure_exactly(tmp_path):
    path = written(tmp_path, NESTED)
    assert same(torch.load(path, weights_only=True), NESTED)
    assert same(decode(path), NESTED)


def test_the_record_rides_along_and_is_read_without_torch(tmp_path):
    assert read_record(written(tmp_path, NESTED)) == RECORD


def test_a_file_of_plain_torch_save_has_no_record_and_decodes(tmp_path):
    path = tmp_path / "a_vlm0.pt"
    torch.save(NESTED, path)
    assert read_record(path) is None
    assert check(path) is None
    assert same(decode(path), NESTED)


def test_equal_values_give_equal_bytes_whatever_their_history():
    base = tensor(7, 128)
    odd_strides = base[0, 0].as_strided((1, 1, 128), (999, 77, 1))
    halves = torch.cat([base, base], dim=1)[:, :1]
    digests = {
        hashlib.sha256(encode({"a": t, "name": "".join(["vis", "ion"])})).hexdigest()
        for t in (base, base.clone(), odd_strides, halves, torch.nn.Parameter(base))
    }
    assert len(digests) == 1


def test_shared_objects_give_the_same_bytes_as_equal_ones():
    shared, text = tensor(1), "".join(["sa", "me"])
    once = encode({"a": shared, "b": shared, "c": text, "d": text})
    apart = encode({"a": shared.clone(), "b": shared.clone(), "c": text, "d": "".join(["s", "ame"])})
    assert bytes(once) == bytes(apart)


def test_a_view_does_not_drag_its_storage_into_the_file():
    batch = torch.zeros(1000, 1024)
    assert len(encode(batch[3:4])) < 8000
    assert len(encode([batch[0], batch[1]])) < 14000


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        {"a": {(1, 2): 3}},
        torch.ones(2).to_sparse(),
        [b"bytes"],
        torch.ones(1, device="meta"),
    ],
)
def test_what_a_file_cannot_carry_is_refused_by_name(value):
    with pytest.raises(TypeError, match="value"):
        encode(value)


@pytest.mark.parametrize("value", [torch.tensor(1.5), torch.empty(0, 3), torch.ones(2, 3).t(), torch.ones(1).expand(5)])
def test_scalars_empty_transposed_and_expanded_tensors_survive(tmp_path, value):
    back = torch.load(written(tmp_path, value), weights_only=True)
    assert torch.equal(back, value)
    assert back.is_contiguous()


def test_every_flipped_byte_of_the_payload_is_noticed(tmp_path):
    value = tensor(5, 256)
    path = written(tmp_path, value)
    sound = path.read_bytes()
    start = sound.find(value.numpy().tobytes())
    assert start > 0
    for position in (start, start + 100, start + 511):
        damaged = bytearray(sound)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert not torch.equal(torch.load(path, weights_only=True), value)  # torch itself says nothing
        assert "checksum" in check(path)
        with pytest.raises(DamagedFeature, match="checksum"):
            decode(path)


def test_no_truncation_passes(tmp_path):
    path = written(tmp_path, tensor(5))
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert check(path) is not None
        with pytest.raises(DamagedFeature):
            decode(path)


def test_no_mutation_escapes_as_another_error_or_as_another_value(tmp_path):
    value = {"x": tensor(3)}
    path = written(tmp_path, value)
    sound = path.read_bytes()
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            back = decode(path)
        except DamagedFeature:
            continue
        assert same(back, value), position


def test_foreign_files_are_damaged_features(tmp_path):
    path = tmp_path / "a_vlm0.pt"
    path.write_bytes(b"not a zip at all")
    assert check(path) is not None
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hi")
    assert "data.pkl" in check(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFeature, match="folder"):
        decode(path)


def test_an_unpickler_never_runs_foreign_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "a_vlm0.pt"
    torch.save(Evil(), path)
    with pytest.raises(DamagedFeature, match="refuses"):
        decode(path)
    assert not (tmp_path / "owned").exists()


def test_describe_works_on_any_file(tmp_path):
    info = describe(written(tmp_path, NESTED))
    assert [(t.path, t.dtype, t.shape) for t in info.tensors] == [
        ("['x']", "float16", (1, 1, 64)),
        ("['t'][0]", "float16", (1, 1, 64)),
        ("[3]", "bfloat16", (1, 1, 64)),
    ]
    assert info.to_json()["recipe"] == {"layer": -2}
    assert info.bytes == (tmp_path / "feature.pt").stat().st_size
