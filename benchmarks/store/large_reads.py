"""Rows `read-large` and `read-frames`: one feature of a long video, whole and some of its frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open

from benchmarks.store.features import bytes_of, large_feature, shuffled
from benchmarks.store.keys import video_key
from benchmarks.store.peers import DiskCache, MosaicShards, Peer, SafetensorsFiles, TorchFiles
from benchmarks.store.report import Line, Row, lines_of, not_measured
from benchmarks.store.scale import Scale
from benchmarks.store.small_reads import check_equal
from benchmarks.store.timing import Contestant, interleaved_s
from cache_store import FeatureStore

BASE = "raw preadv into the ready buffer"
FRAMES_BASE = "raw: one preadv per frame into the ready buffer"


class LargeFeature:
    """One feature, written once by every contestant, and the ready buffers that it is read into."""

    def __init__(self, folder: Path, scale: Scale, cleanup: ExitStack) -> None:
        self.feature = large_feature(scale.large_shape)
        self.out = torch.empty_like(self.feature)
        self.frames = sorted(shuffled(scale.large_shape[0])[: scale.frames])
        self.some_out = torch.empty_like(self.feature[self.frames])
        (folder / "large.raw").write_bytes(bytes_of(self.feature))
        self.raw_fd = os.open(folder / "large.raw", os.O_RDONLY)
        cleanup.callback(os.close, self.raw_fd)
        self.store = FeatureStore(folder / "store")
        cleanup.callback(self.store.close)
        self.path = self.store.put(video_key(), {"vision_features": self.feature})
        self.peers: dict[type[Peer], Peer] = {}
        self.absent: list[Line] = []
        for kind in (TorchFiles, SafetensorsFiles, MosaicShards, DiskCache):
            if not kind.is_installed():
                self.absent.append(not_measured(kind.name, "not installed"))
                continue
            peer = kind(folder / kind.module, self.feature)
            cleanup.callback(peer.close)
            peer.write(0, self.feature)
            peer.finish()
            self.peers[kind] = peer

    def raw(self) -> torch.Tensor:
        buffer, done = bytes_of(self.out), 0
        while done < buffer.nbytes:
            done += os.preadv(self.raw_fd, [buffer[done:]], done)
        return self.out

    def raw_frames(self) -> torch.Tensor:
        buffer = bytes_of(self.some_out)
        each = buffer.nbytes // len(self.frames)
        for place, frame in enumerate(self.frames):
            os.preadv(self.raw_fd, [buffer[place * each : (place + 1) * each]], frame * each)
        return self.some_out


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Both rows."""
    with ExitStack() as cleanup:
        large = LargeFeature(folder, scale, cleanup)
        return [_whole(large, scale), _some_frames(large, scale)]


def _whole(large: LargeFeature, scale: Scale) -> Row:
    store, key, out = large.store, video_key(), large.out
    readers: list[tuple[str, Callable[[], object], float | None]] = [
        (BASE, large.raw, None),
        ('get(out=buffer, check="size")', lambda: _main(store.get(key, out=out, check="size")), 1.05),
        ('get(out=buffer, check="always"): what the first read costs', _always(large), None),
        ("get(out=buffer), CRC checked before in this process", lambda: _main(store.get(key, out=out)), None),
        ('get(check="size"), new memory', lambda: _main(store.get(key, check="size")), None),
        ('get(check="size", mmap=True), copied to the buffer', _mapped(large), None),
    ]
    peers = large.peers
    torch_files = peers[TorchFiles]
    readers.append(("torch.load, new memory", lambda: torch_files.read(0), None))
    readers.append(("torch.load(mmap=True), copied to the buffer", _torch_mapped(large), None))
    readers.append(("safetensors, copied to the buffer", lambda: out.copy_(peers[SafetensorsFiles].read(0)), None))
    if MosaicShards in peers:
        readers.append((f"{MosaicShards.name}, new memory", lambda: peers[MosaicShards].read(0), None))
    if DiskCache in peers:
        readers.append(("diskcache get(read=True) into the buffer", _diskcache_into(large), None))
    contestants = [_reads(name, read, 1, large.feature, out, most) for name, read, most in readers]
    times_s = interleaved_s(contestants, rounds=scale.large_rounds)
    size = large.feature.numel() * large.feature.element_size() / 2**20
    return Row(
        "read-large",
        f"read of one feature {list(large.feature.shape)} float16, {size:.0f} MiB, into a ready buffer",
        "ms per read",
        [*lines_of(contestants, times_s, base=BASE, unit_s=1e-3), *large.absent],
        [f"Warm page cache, one thread, {scale.large_rounds} rounds in turns; the buffer's pages are mapped already."],
    )


def _some_frames(large: LargeFeature, scale: Scale) -> Row:
    store, key, out, frames = large.store, video_key(), large.some_out, large.frames
    peers = large.peers
    quick: list[tuple[str, Callable[[], object], float | None]] = [
        (FRAMES_BASE, large.raw_frames, None),
        ("get(frames=..., out=buffer)", lambda: _main(store.get(key, frames=frames, out=out)), 1.3),
        ("get(frames=...), new memory", lambda: _main(store.get(key, frames=frames)), None),
        ("safetensors get_slice, copied to the buffer", _safetensors_slices(large), None),
        ("torch.load(mmap=True)[frames]", lambda: _torch_mmap(large)[frames], None),
    ]
    wholes: list[tuple[str, Callable[[], object]]] = [
        ("torch.load[frames]", lambda: peers[TorchFiles].read(0)[frames]),
    ]
    if MosaicShards in peers:
        wholes.append((f"{MosaicShards.name}[frames]", lambda: peers[MosaicShards].read(0)[frames]))
    wanted = large.feature[frames]
    contestants = [_reads(name, read, scale.frame_reads, wanted, out, most) for name, read, most in quick]
    contestants += [_reads(name, read, 1, wanted, out) for name, read in wholes]
    times_s = interleaved_s(contestants, rounds=scale.large_rounds)
    return Row(
        "read-frames",
        f"read of {len(frames)} random frames of its {large.feature.shape[0]}",
        "ms per read",
        [*lines_of(contestants, times_s, base=FRAMES_BASE, unit_s=1e-3), *large.absent],
        ["Warm page cache, one thread. A slice is not CRC-checked by anyone here."],
    )


def _reads(
    name: str,
    read: Callable[[], object],
    count: int,
    wanted: torch.Tensor,
    out: torch.Tensor,
    most_ratio: float | None = None,
) -> Contestant:
    out.zero_()  # so that what an earlier reader left is not taken for this one's
    check_equal(name, read(), wanted)

    def run(_: int) -> None:
        for _ in range(count):
            read()

    return Contestant(name, count, run, most_ratio=most_ratio)


def _main(found: object) -> torch.Tensor:
    """`vision_features` of what the store returned."""
    return cast(dict[str, torch.Tensor], found)["vision_features"]


def _always(large: LargeFeature) -> Callable[[], object]:
    return lambda: _main(large.store.get(video_key(), out=large.out, check="always"))


def _mapped(large: LargeFeature) -> Callable[[], object]:
    return lambda: large.out.copy_(_main(large.store.get(video_key(), check="size", mmap=True)))


def _torch_mmap(large: LargeFeature) -> torch.Tensor:
    path = cast(TorchFiles, large.peers[TorchFiles]).path(0)
    feature: torch.Tensor = torch.load(path, mmap=True)
    return feature


def _torch_mapped(large: LargeFeature) -> Callable[[], object]:
    return lambda: large.out.copy_(_torch_mmap(large))


def _diskcache_into(large: LargeFeature) -> Callable[[], object]:
    peer, target = cast(DiskCache, large.peers[DiskCache]), bytes_of(large.out)

    def read() -> torch.Tensor:
        peer.read_into(0, target)
        return large.out

    return read


def _safetensors_slices(large: LargeFeature) -> Callable[[], object]:
    path = cast(SafetensorsFiles, large.peers[SafetensorsFiles]).path(0)

    def read() -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            stored = file.get_slice("feature")
            for place, frame in enumerate(large.frames):
                large.some_out[place] = stored[frame]
        return large.some_out

    return read
