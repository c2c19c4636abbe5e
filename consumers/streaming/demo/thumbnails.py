"""Small pictures of frames, as text that a page can hold."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

LONGEST_SIDE = 192


def thumbnail(pixels: np.ndarray) -> str:
    """Return a frame, uint8 [height, width, 3], as the data URI of a JPEG of at most `LONGEST_SIDE` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
