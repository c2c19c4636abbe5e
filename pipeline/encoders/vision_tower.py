"""What the video encoders share: one tower's forward over the frames of one video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.encoders.checkpoint import DTYPES
from pipeline.errors import EncoderError, first_line
from pipeline.vision.pixel_table import PixelTable

# Named instead of left to the library: eager, SDPA and flash attention round differently.
ATTENTION = "sdpa"

_MOST_SHAPES = 1 << 16  # numbers of frames that one process may compile for


class TowerEncoder:
    """A vision tower on one device; see `pipeline.encoders.base.VideoEncoder`."""

    def __init__(
        self,
        tower: torch.nn.Module,
        *,
        device: str,
        dtype: str,
        table: PixelTable,
        frames_per_forward: int | None,
        select: Callable[[torch.Tensor], torch.Tensor],
        is_compiled: bool = False,
    ) -> None:
        """Move `tower`, already in `dtype`, to `device`.

        `select` picks the stored tokens of its last hidden state [n, tokens, width].

        Raises:
            EncoderError: `is_compiled`, and this machine cannot compile for the device.
        """
        tower = tower.to(device).eval().requires_grad_(False)
        self._tower = compiled(tower, device) if is_compiled else tower
        self._device = device
        self._dtype = DTYPES[dtype]
        self._table = table
        self.frames_per_forward = frames_per_forward
        self._select = select

    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """Encode one video: uint8 [frames, height, width, 3] to a CPU tensor [frames, tokens, width], own storage."""
        # A copy: Ray hands out read-only arrays.
        features = self.forward(torch.tensor(pixels))
        # A slice would be saved with the storage of what it was cut from; inference tensors refuse later use
        # in autograd.
        with torch.inference_mode(mode=False):
            return torch.empty(features.shape, dtype=features.dtype).copy_(features)

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor, *, at_most: int | None = None) -> torch.Tensor:
        """Encode one video, uint8 [frames, height, width, 3] anywhere, to [frames, tokens, width] on the device.

        `at_most` frames go through the tower at once, if that is less than what the recipe asks for.
        """
        step = min(count for count in (self.frames_per_forward, at_most, len(pixels)) if count is not None)
        parts = [self._tower_of(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _tower_of(self, pixels: torch.Tensor) -> torch.Tensor:
        values = self._table(pixels.to(self._device)).to(self._dtype)
        return self._select(self._tower(pixel_values=values).last_hidden_state)


def compile_facts(is_compiled: bool) -> dict[str, str]:
    """Return what a recipe says of compiling: nothing without it, as before there was a choice."""
    return {"compile": "inductor"} if is_compiled else {}


def compiled(tower: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Compile a tower's forward so that what it computes for a video depends on the video alone.

    Each number of frames is compiled by itself: kernels for any number would be tuned for the one that came first. So
    torch's limit on how often it compiles, beyond which a tower would run eagerly, is out of the way. No kernel is
    chosen by timing it.

    Raises:
        EncoderError: there is no compiler for the device on this machine.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = _MOST_SHAPES
    torch._inductor.config.deterministic = True
    try:
        torch.compile(_probe, fullgraph=True, dynamic=False)(torch.zeros(8, device=device))
    except Exception as exc:
        raise EncoderError(f"this machine cannot compile for {device}: {first_line(exc)}") from exc
    return torch.compile(tower, fullgraph=True, dynamic=False)


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values.exp() + 1


def load_complete(
    loads: Callable[..., Any], folder: Path, *, dtype: str, attention: str, harmless: Iterable[str] = ()
) -> Any:
    """Load a checkpoint folder by a class's `from_pretrained`, every parameter of it.

    Raises:
        EncoderError: it cannot be loaded, or is not complete (see `check_complete`).
    """
    try:
        loaded, info = loads(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
        )
    except Exception as exc:
        raise EncoderError(f"{folder} cannot be loaded: {first_line(exc)}") from exc
    check_complete(str(folder), info, harmless=harmless)
    return loaded


def check_complete(what: str, info: dict[str, Any], *, harmless: Iterable[str] = ()) -> None:
    """Check transformers' report on a load: every parameter came from the checkpoint.

    Args:
        what: the checkpoint, for the message.
        info: `output_loading_info` of `from_pretrained`.
        harmless: parts of names that may be missing, for they do not touch the features.

    Raises:
        EncoderError: a tensor is missing or of another shape; transformers would fill it with random numbers.
    """
    missing = sorted(str(name) for name in info.get("missing_keys", ()) if not any(part in name for part in harmless))
    wrong = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ()))
    if missing or wrong:
        named = ", ".join((missing + wrong)[:5])
        raise EncoderError(
            f"{what} lacks {len(missing)} tensors of the model and has {len(wrong)} of another shape ({named}, ...); "
            "it is incomplete or of another architecture"
        )


def checked_frames_per_forward(frames: int | None) -> int | None:
    """Return `frames` if it is None (all frames of a video at once) or at least 1.

    Raises:
        EncoderError: it is not.
    """
    if frames is not None and frames < 1:
        raise EncoderError(f"frames_per_forward must be at least 1, got {frames}")
    return frames
