"""What int8 costs and saves beside exact features: bytes, put, read and loss of one video's feature, as ratios.

    python -m benchmarks.int8 --folder /dev/shm/int8 --rounds 7

Features are normally distributed, with a few wide channels as vision towers have them. Everything is in the page cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.store.timing import Contestant, interleaved_s, ratios_to
from cache_store import FeatureStore, VideoKey, describe, int8

SHAPES = {"144 MiB": (128, 576, 1024), "quick": (8, 36, 64)}
EXACT, INT8 = VideoKey("exact", "a", 128, "0" * 8), VideoKey("int8", "a", 128, "0" * 8)
RECIPE = {int8.RECIPE_FIELD: dict(int8.STORAGE)}


def feature_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Return float16 values, ten or so of the channels ten times as wide as the others."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values[..., :: max(1, shape[-1] // 10)] *= 10
    return values.half()


def works(store: FeatureStore, feature: torch.Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return what is timed: the exact way and int8's."""
    value = {"vision_features": feature}
    out, some = torch.empty_like(feature), slice(0, min(8, len(feature)))

    def read(key: VideoKey, **options: object) -> Callable[[], object]:
        return lambda: store.get(key, **options)  # type: ignore[arg-type]

    return {
        "put, flushed to the disk": (
            lambda: store.put(EXACT, value),
            lambda: store.put(INT8, value, recipe=RECIPE),
        ),
        "read whole into a buffer, checksum": (
            read(EXACT, out=out, check="always"),
            read(INT8, out=out, check="always"),
        ),
        "read whole into a buffer": (read(EXACT, out=out, check="size"), read(INT8, out=out, check="size")),
        "read 8 frames": (read(EXACT, frames=some), read(INT8, frames=some)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the store goes; else the temporary folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small feature, only to see that it runs")
    args = parser.parse_args()
    feature = feature_of(SHAPES["quick" if args.quick else "144 MiB"])
    with tempfile.TemporaryDirectory(dir=args.folder) as root, FeatureStore(root) as store:
        paths = [
            store.put(EXACT, {"vision_features": feature}),
            store.put(INT8, {"vision_features": feature}, recipe=RECIPE),
        ]
        sizes = [path.stat().st_size for path in paths]
        print(f"| {list(feature.shape)} float16 | exact, ms | int8, ms | ratio |\n|---|--:|--:|--:|")
        print(f"| bytes | {sizes[0]:,} | {sizes[1]:,} | {sizes[1] / sizes[0]:.3f} |")
        for name, (exactly, as_int8) in works(store, feature).items():
            contestants = [
                Contestant("exact", 1, lambda _, run=exactly: run()),  # type: ignore[misc]
                Contestant("int8", 1, lambda _, run=as_int8: run()),  # type: ignore[misc]
            ]
            times_s = interleaved_s(contestants, rounds=args.rounds)
            ratio = statistics.median(ratios_to("exact", times_s)["int8"])
            exact_ms, int8_ms = (1e3 * statistics.median(times_s[way]) for way in ("exact", "int8"))
            print(f"| {name} | {exact_ms:.1f} | {int8_ms:.1f} | {ratio:.2f} |", flush=True)
        print(f"loss: {describe(paths[1]).loss}")


if __name__ == "__main__":
    main()
