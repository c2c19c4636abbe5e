"""Single images from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import MediaError, first_line


def read_image(path: Path) -> np.ndarray:
    """Read one image as uint8 [h, w, 3] RGB: exactly `PIL.Image.open(path).convert("RGB")`.

    So orientation tags are not applied and transparency is dropped, as in the loaders that models were
    trained with.

    Raises:
        MediaError: the file is missing, no image, cut short or damaged; the message names it.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as exc:
        raise MediaError(f"{path.name}: no such file in {path.parent}") from exc
    # PIL reports damage as OSError, ValueError, SyntaxError, struct.error and more, and warns of bombs by an
    # exception.
    except Exception as exc:
        raise MediaError(f"{path.name}: not a readable image: {first_line(exc)}") from exc
