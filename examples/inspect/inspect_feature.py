"""Draw the frames that a cached video feature was made of, as the tower saw them, beside the norms of their patches.

vlm-cache demo
vlm-cache ls --store demo_run/longva_cache
python examples/inspect/inspect_feature.py demo_run/longva_cache/demo-videos/<name>.pt \
    --data demo_run/input/videos --out feature.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cache_store import FeatureStore, VideoKey, describe
from pipeline.vision.decoding import decode_frame
from pipeline.vision.preprocessing import ClipLikePreprocess


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("feature", type=Path, help="a .pt file of a video that vlm-cache built")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that the build read")
    parser.add_argument("--frames", type=int, default=6, metavar="N", help="how many of them, evenly spread")
    parser.add_argument("--out", type=Path, default=Path("feature.png"), metavar="FILE", help="a .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    record = describe(options.feature).record
    if record is None or record.recipe is None or "frame_indices" not in (record.provenance or {}):
        parser.error(f"{options.feature} does not say of which frames of a video vlm-cache build made it")
    key = VideoKey(**{field.name: record.key[field.name] for field in fields(VideoKey)})
    root = options.feature.absolute().parents[1]
    entry = None
    if (root / ".vlm-cache").is_dir():  # opening a store makes one
        with FeatureStore(root) as store:
            entry = store.get(key, recipe=record.recipe)  # in the tower's dtype, however it is kept
    if entry is None:
        parser.error(f"{options.feature} does not lie where a store keeps the feature of {key.video_id}: name it there")
    rows = np.unique(np.linspace(0, len(entry["vision_features"]) - 1, options.frames, dtype=int)).tolist()
    indices = [record.provenance["frame_indices"][row] for row in rows]
    pictures = seen_by_the_tower(options.data / entry["video_path"], indices, record.recipe)
    norms = patch_norms(entry["vision_features"][rows])
    title = f"{entry['dataset']}: {entry['video_id']}, {list(entry['vision_features'].shape)} {entry['dtype']}"
    labels = [f"row {row}, frame {index}" for row, index in zip(rows, indices, strict=True)]
    draw(pictures, norms, labels, title).savefig(options.out, dpi=150)
    print(f"{options.out}: rows {rows} of {title}; {record.provenance['decoder']}")


def seen_by_the_tower(video: Path, indices: Sequence[int], recipe: Mapping[str, Any]) -> list[np.ndarray]:
    """Return frames of a video, resized and cropped as the recipe says: uint8 [height, width, 3] each."""
    settings = dict(recipe["encoder"]["preprocess"])
    config = {"image_processor_type": settings.pop("processor").removesuffix("Pil"), **settings}
    preprocess = ClipLikePreprocess.from_config(config)
    return [preprocess(decode_frame(video, index).pixels) for index in indices]


def patch_norms(features: torch.Tensor) -> np.ndarray:
    """Return the Euclidean norm of each patch's feature: [frames, tokens, width] to float32 [frames, rows, columns].

    A class token in front of the patches is left out.
    """
    frames, tokens, _ = features.shape
    side = math.isqrt(tokens)
    # In float32: the squares of a thousand values soon leave what float16 can hold.
    return features[:, tokens - side * side :].float().norm(dim=-1).view(frames, side, side).numpy()


def draw(pictures: Sequence[np.ndarray], norms: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    """Return a figure with a column for each frame: its picture, and below it the norms on one scale for all."""
    with rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(0.9 + 2.0 * len(pictures), 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(pictures), squeeze=False)
        # A few tokens have norms many times those of all others, and would leave the rest black.
        low, high = np.percentile(norms, [1, 99])
        for column, (picture, norm, label) in enumerate(zip(pictures, norms, labels, strict=True)):
            axes[0, column].imshow(picture)
            axes[0, column].set_title(label)
            shown = axes[1, column].imshow(norm, vmin=low, vmax=high, cmap="viridis")
            axes[1, column].set_xlabel(f"{norm.min():.1f} to {norm.max():.1f}")
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        figure.colorbar(shown, ax=axes[1], label="norm of a patch's feature", extend="both", fraction=0.03, pad=0.01)
        figure.suptitle(title)
        return figure


if __name__ == "__main__":
    main()
