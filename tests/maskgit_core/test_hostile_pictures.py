"""Picture files: 16 bits are scaled rightly, floats are refused by name, nothing reaches an interpreter."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from maskgit_core.errors import DataError
from maskgit_core.images.image_sets import decode_bytes
from maskgit_core.images.pictures import has_readable_header, read_picture


def test_16_bit_grey_is_scaled_to_8(tmp_path):
    values = np.array([[0, 128, 129, 257, 32767, 65535]], dtype=np.uint16)
    for name in ("grey.png", "grey.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        expected = np.round(values / 257).astype(np.uint8)
        assert np.array_equal(read_picture(tmp_path / name, 1)[..., 0], expected)
        assert np.array_equal(read_picture(tmp_path / name, 3), np.repeat(expected[..., None], 3, axis=2))


def test_floating_point_and_wide_integers_are_refused_by_name(tmp_path):
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(tmp_path / "wide.tiff")
    for name, reason in (("float.tiff", "floating-point"), ("wide.tiff", "70000")):
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            read_picture(tmp_path / name)


def test_postscript_named_png_is_not_opened(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert not has_readable_header(path)
    with pytest.raises(DataError, match=r"picture\.png: the picture cannot be decoded"):
        read_picture(path)


def test_stated_rules_for_palettes_transparency_cmyk_and_orientation(tmp_path):
    red = Image.new("RGB", (4, 2), (255, 0, 0))
    red.quantize(4).save(tmp_path / "palette.png")
    Image.new("RGBA", (4, 2), (255, 0, 0, 10)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path / "turned.png", exif=exif)
    Image.new("CMYK", (4, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    for name in ("palette.png", "clear.png", "turned.png", "cmyk.tiff"):
        pixels = read_picture(tmp_path / name)
        assert pixels.shape == (2, 4, 3) and pixels[0, 0].tolist() == [255, 0, 0], name


def test_bombs_and_broken_files_are_one_line(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(data, "PNG")
    bomb = bytearray(data.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"bomb: .*exceeds limit"):
        decode_bytes(bytes(bomb), "bomb")
    rng = random.Random(0)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        stream = io.BytesIO()
        Image.effect_noise((16, 16), 50).save(stream, form)
        whole = stream.getvalue()
        for _ in range(30):
            place = rng.randrange(len(whole))
            broken = whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else (
                whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :]
            )  # fmt: skip
            try:
                decode_bytes(broken, "broken")
            except DataError as error:
                assert str(error).startswith("broken: ")
