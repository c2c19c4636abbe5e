"""The patches of a video's frames hold each frame's pixels in its own temporal slot."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.encoders import small_models
from pipeline.vision.preprocessing import QwenImagePreprocess


def test_each_frame_of_a_group_keeps_its_slot():
    preprocess = QwenImagePreprocess.from_config(small_models.QWEN_PROCESSOR)
    frames = torch.randn(4, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    video, grid = preprocess.patchify_video(frames)
    assert grid.tolist() == [[2, 4, 6]]
    images = [preprocess.patchify(frame)[0].reshape(24, 3, 2, 14, 14) for frame in frames]
    slots = video.reshape(2, 24, 3, 2, 14, 14)
    for index in range(4):
        assert torch.equal(slots[index // 2, :, :, index % 2], images[index][:, :, 0])


def test_a_still_image_is_what_the_processor_makes_of_it():
    preprocess = QwenImagePreprocess.from_config(small_models.QWEN_PROCESSOR)
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    wanted = preprocess.built(images=[image], return_tensors="pt")
    patches, grid = preprocess.patchify(preprocess.table()(torch.from_numpy(preprocess(image))[None])[0])
    assert torch.equal(patches, wanted["pixel_values"])
    assert torch.equal(grid, wanted["image_grid_thw"])
