"""A folder of numbered images as a video: `00001.jpg`, `frame002.png`, in the order of their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL

from pipeline.errors import MediaError
from pipeline.vision.images import read_image
from pipeline.vision.survey import Survey, SurveyedFrame

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def numbered_images(folder: Path) -> dict[int, Path]:
    """Return the images of a folder by the last number in their names, ascending; other files are passed over.

    Raises:
        MediaError: there is none, or two have one number. One line, without the folder.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = re.search(r"(\d+)\D*$", path.stem)
        if path.suffix.lower() not in IMAGE_SUFFIXES or number is None:
            continue
        other = found.setdefault(int(number[1]), path)
        if other is not path:
            raise MediaError(f"{other.name} and {path.name} have one number")
    if not found:
        raise MediaError("a folder without numbered images")
    return dict(sorted(found.items()))


def survey_images(folder: Path, fps: float | None) -> Survey:
    """Return what a folder of images promises. `fps`: images per second; None: nobody knows, so there are no clips.

    An image's time is its number over `fps`, whether numbering begins at 0 or at 1, as MVBench counts its
    folders; higher numbering counts from its first number.

    Raises:
        MediaError: as `numbered_images`, or `fps` is not above 0.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"a frame rate must be above 0, got {fps}")
    numbers = list(numbered_images(folder))
    return Survey(
        container="images",
        codec="images",
        frames=tuple(SurveyedFrame(number, number, True, place) for place, number in enumerate(numbers)),
        average_fps=math.nan if fps is None else fps,
        time_base=Fraction(1) if fps is None else 1 / Fraction(fps),
        zero_pts=0 if numbers[0] <= 1 else numbers[0],
    )


class ImageFolderReader:
    """Frames of one folder of images, by index."""

    def __init__(self, folder: Path, survey: Survey) -> None:
        """List `folder`.

        Raises:
            MediaError: as `numbered_images`.
        """
        self.decoder = f"pillow {PIL.__version__}"
        self.num_frames = survey.num_frames
        self.average_fps = survey.average_fps
        self._paths = list(numbered_images(folder).values())

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, in the order asked; repeats are allowed.

        Raises:
            MediaError: an image cannot be read; the message names the frame and the image.
        """
        for index in indices:
            if not 0 <= index < len(self._paths):
                raise MediaError(f"frame {index}: the folder has {len(self._paths)}")
            try:
                yield read_image(self._paths[index])
            except MediaError as exc:
                raise MediaError(f"frame {index}: {exc}") from exc
