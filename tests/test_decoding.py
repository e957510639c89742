"""decoding.py: files become RGB levels by stated rules, or a line that says why not."""

import io
import os
import warnings
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import decoding
from tests.test_data import picture, problems

pytestmark = pytest.mark.usefixtures("own_cache")

INKS = {"red": (254, 0, 0), "cyan": (0, 255, 255)}


def test_decode_rgb_is_exact_and_not_bgr(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decoding.decode(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 0), (255, 255, 255)),  # transparent: white, not its hidden grey
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # 255 (1 - 51/255)
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 0x1234, (0x12, 0x12, 0x12)),  # Pillow's own conversion saturates to 255
        ("I", 0x4321, (0x43, 0x43, 0x43)),
    ],
)
def test_decode_modes(tmp_path, mode, value, expected):
    path = picture(tmp_path / ("a.tif" if mode == "I" else "a.png"), mode=mode, colour=value)
    assert decoding.decode(path).shape == (4, 6, 3)
    assert (decoding.decode(path) == expected).all()


def test_decode_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([254, 0, 0, 0, 255, 255] + [0] * 762)
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert decoding.decode(tmp_path / "a.png").tolist() == [[[254, 0, 0], [255, 255, 255]]]


def test_decode_cmyk(tmp_path):
    path = picture(tmp_path / "a.jpg", (16, 16), (0, 255, 255, 0), "CMYK", quality=95)
    # red up to JPEG's rounding; an inverted reading would be cyan
    assert np.abs(decoding.decode(path).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_rotation(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0], upright[0, -1], upright[-1, 0] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # EXIF 2.3, tag 274: the upright picture's side that the stored first row and first column are
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decoding.decode(tmp_path / "a.png"), upright)


def png_header(width, height):
    """A PNG that is nothing but a header: what a bomb shows before it is decoded."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + crc

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"")


def broken_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "bomb.png").write_bytes(png_header(10_000, 5_001))
    (folder / "bigger.png").write_bytes(
        png_header(14_000, 14_000)
    )  # Pillow itself refuses this one
    damaged = bytearray((picture(folder / "d.png", (64, 64))).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (folder / "d.png").write_bytes(damaged)
    Image.new("F", (3, 3)).save(folder / "float.tif")
    return sorted(path.name for path in folder.iterdir())


def test_every_broken_image_is_listed_in_one_message(tmp_path):
    names = broken_images(tmp_path / "images")
    found = problems(data.ImageFolder, tmp_path / "images")
    assert len(found) == len(names) == 8
    for name, problem in zip(names, found, strict=True):
        assert name in problem and "\n" not in problem
    text = dict(zip(names, found, strict=True))
    assert "10000 x 5001 pixels" in text["bomb.png"]
    assert "not an image" in text["page.jpg"]


def test_what_is_there_instead_of_an_image_is_named(tmp_path):
    for start, said in (
        (b"\0\0\0\x18ftypheic", "a HEIC photograph or a film, which Pillow does not read – "),
        (b"\n<!DOCTYPE html>", "a web page, not an image – "),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer, not an image – "),
        (b"anything", "cannot be read (not an image) – "),
    ):
        (tmp_path / "a.jpg").write_bytes(start)
        assert f"a.jpg: {said}" in problems(decoding.decode, tmp_path / "a.jpg")[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_are_an_image_or_a_data_error(kind):
    """Pillow raises more than OSError on them: SyntaxError for a PNG."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(buffer, kind)
    whole, outcomes = buffer.getvalue(), set()
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, min(len(whole), 120), 3)
        damaged[places] = rng.integers(0, 256, 3)
        try:
            outcomes.add(decoding.decode(io.BytesIO(damaged.tobytes())).shape[2])
        except data.DataError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
    assert "refused" in outcomes


def test_size_limit_is_inclusive(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 24)
    assert decoding.decode(picture(tmp_path / "a.png", (6, 4))).shape == (4, 6, 3)
    with pytest.raises(data.DataError, match="25 x 1 pixels"):
        decoding.decode(picture(tmp_path / "b.png", (25, 1)))


def test_sides_are_limited_too(tmp_path):
    """50 million pixels in a line would be padded to as many columns for every frame beside it."""
    for side, is_taken in ((decoding.MAX_SIDE, True), (decoding.MAX_SIDE + 1, False)):
        for size in (side, 1), (1, side):
            file = picture(tmp_path / "a.png", size)
            if is_taken:
                assert decoding.decode(file).shape == (*size[::-1], 3)
                continue
            with pytest.raises(data.DataError, match=f"a.png: {size[0]} x {size[1]} pixels"):
                decoding.decode(file)


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    """Of 7000 x 7000 pixels, 75 bytes more take 40 ms more."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    image.save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    assert decoding.decode(tmp_path / "a.jpg").shape == (64, 64, 3)
    last = content.rfind(b"\xff\xda")
    (tmp_path / "b.jpg").write_bytes(content[:last] + 100 * content[last:-2] + content[-2:])
    with pytest.raises(data.DataError, match="b.jpg: a JPEG of 1.. scans – save it again"):
        decoding.decode(tmp_path / "b.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(data.DataError, match="a.jpg: .*is a pipe"):
        decoding.decode(tmp_path / "a.jpg")


FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "DOS PostScript": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "Photoshop": b"8BPS\0\1" + bytes(6) + b"\0\3" + bytes(100), "PDF": b"%PDF-1.4\n",
    "FITS": b"SIMPLE  =                    T".ljust(2880), "MPEG": b"\0\0\1\xb3" + bytes(20),
    "film": b"\0\0\0\x18ftypmp42" + bytes(20), "GRIB": b"GRIB\0\0\0\1",
    "HDF5": b"\x89HDF\r\n\x1a\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_document_called_jpg_starts_no_program(tmp_path, monkeypatch, name):
    """Of what PATH has, anything that is started leaves its mark."""
    sentinel = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    for program in ("gs", "gswin32c", "gswin64c", "rasterize"):
        file = tmp_path / "bin" / program
        file.write_text(f"#!/bin/sh\ntouch {sentinel}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "a.jpg").write_bytes(FOREIGN[name])
    with pytest.raises(data.DataError, match="a.jpg: .* – (export|convert|replace)"):
        decoding.decode(tmp_path / "a.jpg")
    assert not sentinel.exists()


def test_an_icon_is_no_picture(tmp_path):
    """The pictures in it are as large as they like, and decoded as it is opened."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.ico")
    with pytest.raises(data.DataError, match="a.ico: cannot be read .not an image"):
        decoding.decode(tmp_path / "a.ico")


# --------------------------------------------------------------------------------- levels of grey


@pytest.mark.parametrize("kind", [np.int32, np.uint16])
@pytest.mark.parametrize("values, expected", [
    ((0, 100, 255), (0, 100, 255)),  # 8 bits in a larger box: not black
    ((0, 0x1234, 0xFFFF), (0, 0x12, 0xFF)), ((0, 255, 256), (0, 0, 1)),
])  # fmt: skip
def test_whole_numbers_are_levels_of_8_or_16_bits(tmp_path, kind, values, expected):
    Image.fromarray(np.array([values], kind)).save(tmp_path / "a.tif")
    assert decoding.decode(tmp_path / "a.tif").tolist() == [[[v] * 3 for v in expected]]


@pytest.mark.parametrize("values", [(0, 65536), (-1, 9)])
def test_whole_numbers_beyond_16_bits_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
    (found,) = problems(decoding.decode, tmp_path / "a.tif")
    assert f"levels from {values[0]} to {values[1]} have no agreed range – save as 8-bit" in found


# --------------------------------------------------------------------------------- large pictures


def photograph(height, width):
    """Waves that are some 60 pixels long, so that no way of reducing differs much from another."""
    y, x = np.arange(height)[:, None], np.arange(width)
    waves = [np.sin(x / 20 + phase) * np.cos(y / 25 + phase) for phase in range(3)]
    return np.rint(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {"quality": 95}), ("a.webp", {"lossless": True}),
])  # fmt: skip
@pytest.mark.parametrize("height, width", [(640, 900), (700, 640), (1000, 640)])
def test_what_is_not_too_large_is_untouched(tmp_path, name, options, height, width):
    Image.fromarray(photograph(height, width)).save(tmp_path / name, **options)
    plain = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(decoding.decode(tmp_path / name, 640), plain)
    assert np.array_equal(decoding.decode(tmp_path / name), plain)


@pytest.mark.parametrize("name, height, width", [
    ("a.png", 350, 700), ("a.png", 650, 450), ("a.png", 1300, 1350),
    ("a.tif", 350, 700), ("a.tif", 650, 450), ("a.tif", 1360, 1500),
    ("a.jpg", 350, 700), ("a.jpg", 650, 450), ("a.jpg", 1360, 1500),
])  # fmt: skip
def test_what_is_larger_is_reduced_to_the_shorter_side(tmp_path, name, height, width):
    """Against the mean of the area that each pixel covers; waves are up to 9 pixels long after it,
    so that a triangle in place of the area costs some 5 levels."""
    original = photograph(height, width)
    Image.fromarray(original).save(tmp_path / name, quality=95, compress_level=1)
    levels = decoding.decode(tmp_path / name, 320)
    expected = (320, round(width * 320 / height))
    if width < height:
        expected = (round(height * 320 / width), 320)
    assert levels.shape == (*expected, 3)

    area = F.interpolate(torch.from_numpy(original).permute(2, 0, 1)[None].float(),
                         expected, mode="bilinear", antialias=True)[0].permute(1, 2, 0)  # fmt: skip
    away = np.abs(levels - area.numpy())
    assert away.mean() < 1.5 and away.max() < 12
    # The means of all are those of the original, so nothing is cut off or shifted.
    assert np.allclose(levels.mean((0, 1)), original.mean((0, 1)), atol=0.5)


def test_a_rotated_photograph_is_reduced_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the stored top is the right side
    stored = photograph(800, 1600)
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = decoding.decode(tmp_path / "a.jpg", 640)
    assert upright.shape == (1280, 640, 3)
    Image.fromarray(np.ascontiguousarray(np.rot90(stored, -1))).save(tmp_path / "b.jpg", quality=95)
    assert np.abs(upright - decoding.decode(tmp_path / "b.jpg", 640).astype(int)).mean() < 1


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("rotation, upright", [({}, (256, 64)), ({274: 6}, (64, 256))])
def test_the_upright_size_is_in_the_header(tmp_path, suffix, rotation, upright):
    """Half of a file is enough, which could not be decoded."""
    exif = Image.Exif()
    exif.update(rotation)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photograph(64, 256)).save(path, exif=exif)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with decoding.opened(path) as image:
        assert decoding.upright_size(image) == upright
    assert "cannot be read" in problems(decoding.decode, path)[0]


def test_a_photograph_beyond_the_limit_is_read_if_it_is_reduced(tmp_path):
    Image.new("RGB", (9000, 6000), (200, 10, 30)).save(tmp_path / "a.jpg")
    assert "9000 x 6000 pixels" in problems(decoding.decode, tmp_path / "a.jpg")[0]
    levels = decoding.decode(tmp_path / "a.jpg", 640)
    assert levels.shape == (640, 960, 3)
    assert np.abs(levels - np.array([200, 10, 30])).max() <= 3  # JPEG's rounding
    # A PNG is decoded whole before it could be reduced. Pillow would warn of a size like this.
    (tmp_path / "b.png").write_bytes(png_header(10_000, 9000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "10000 x 9000 pixels" in problems(decoding.decode, tmp_path / "b.png", 640)[0]


def test_a_caller_s_own_image_is_reduced_and_stays_as_it_is(tmp_path):
    Image.fromarray(photograph(800, 1600)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        levels = decoding.rgb(image, shorter=640)
        assert image.size == (1600, 800) and levels.shape == (640, 1280, 3)
