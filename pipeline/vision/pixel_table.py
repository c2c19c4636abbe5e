"""The device half of preprocessing: rescaling and normalising by looking values up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class PixelTable:
    """The rescaled and normalised value of each uint8 value, per channel, as one processor computes it."""

    values: np.ndarray  # float32 [3, 256]

    @classmethod
    def of(cls, processor: Any) -> PixelTable:
        """Let `processor`, a Hugging Face PIL processor, rescale and normalise the ramp 0..255."""
        ramp: np.ndarray = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        if processor.do_rescale:
            ramp = processor.rescale(ramp, processor.rescale_factor)
        if processor.do_normalize:
            ramp = processor.normalize(ramp, processor.image_mean, processor.image_std)
        return cls(np.ascontiguousarray(ramp[:, 0], dtype=np.float32))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 [n, h, w, 3] to float32 [n, 3, h, w], on the device of `pixels`."""
        table = self._on(pixels.device)
        channels = pixels.permute(0, 3, 1, 2)
        out = torch.empty(channels.shape, dtype=torch.float32, device=pixels.device)
        for channel in range(3):
            # One channel at a time: an index tensor is four times the size of what it looks up.
            out[:, channel] = table[channel][channels[:, channel].int()]
        return out

    def _on(self, device: torch.device) -> torch.Tensor:
        if str(device) not in self._copies:
            self._copies[str(device)] = torch.from_numpy(self.values).to(device)
        return self._copies[str(device)]

    @cached_property
    def _copies(self) -> dict[str, torch.Tensor]:
        return {}
