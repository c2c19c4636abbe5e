"""Single images from disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import MediaError
from pipeline.vision.images import read_image


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_is_read_as_pil_converts_it(tmp_path, mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise.convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.array(Image.open(path).convert("RGB")))


def test_an_orientation_tag_does_not_turn_the_image(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "a.jpg", exif=tag)
    assert read_image(tmp_path / "a.jpg").shape == (5, 7, 3)


def test_a_cut_or_empty_or_missing_image_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for length in (0, 20, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(MediaError, match=r"^a\.jpg: not a readable image: "):
            read_image(path)
    with pytest.raises(MediaError, match=r"^gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tc_cmyk.jpg", (720, 1280)),
        ("tc_grayscale.jpg", (720, 1280)),
        ("tc_rgba.png", (720, 1280)),
        ("tc_bad_huffman.jpg", (768, 1024)),
    ],
)
def test_unusual_real_images_are_read(real_media, name, size):
    assert read_image(real_media / "robots" / "bad_images" / name).shape == (*size, 3)


@pytest.mark.parametrize("name", ["tc_corrupt.jpg", "tc_sigsegv.png"])
def test_damaged_real_images_are_errors(real_media, name):
    with pytest.raises(MediaError, match=name):
        read_image(real_media / "robots" / "bad_images" / name)


def test_an_error_without_a_message_is_named_by_its_kind(tmp_path, monkeypatch):
    def refuse(_):
        raise AssertionError

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MediaError, match=r"^a\.jpg: not a readable image: AssertionError$"):
        read_image(tmp_path / "a.jpg")
