"""Image files become levels: (H, W, 3) uint8 RGB, by stated rules.

    levels = decode("park/7.jpg")
    levels = decode("park/7.jpg", shorter=640)    # a photograph of 12 megapixels, as 853 x 640

A file that cannot be read, is damaged, too large, or no image is named in a DataError, in one line.
"""

import warnings
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
from PIL import Image, ImageOps

from layouts import DataError, formats, in_place_of_a_file
from schema import open_file

MAX_PIXELS = 50_000_000  # an image is refused from its header above this: 150 MB as uint8 RGB
MAX_SIDE = 32_768  # likewise: the frames of a batch are padded to the longest of their sides
MAX_SCANS = 100  # of a progressive JPEG
ORIENTATION = 274  # the EXIF tag; above 4, width and height are exchanged


def reduced_size(size, shorter) -> tuple[int, int]:
    """A size in pixels whose shorter side is at most `shorter`; None: as it is."""
    if shorter is None or min(size) <= shorter:
        return tuple(size)
    return tuple(round(side * shorter / min(size)) for side in size)


@contextmanager
def opened(path, shorter=None):
    """The image file, of which the header alone is read yet.

    shorter  what the picture will be reduced to: of a JPEG, no more is decoded than that takes
    raises   DataError naming the file, also for what fails in the `with` block
    """
    with _told_of(path), _source(path) as source:
        with warnings.catch_warnings():  # Pillow warns at half of what it refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=formats())
        with image:
            _refuse_many_scans(image, source, path)
            reduced = reduced_size(image.size, shorter)
            if reduced != image.size:
                image.draft(None, reduced)
            # The header says how large it is, before a pixel is decoded.
            refuse_too_large(image, path)
            yield image


@contextmanager
def _told_of(path):
    """What fails in the `with` block becomes a DataError that names the image."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} – scale it down") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: {in_place_of_an_image(path)}") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
        raise DataError(f"{path}: cannot be read ({error}) – replace or remove it") from None


def _source(path):
    """A file that is open already stays so."""
    return nullcontext(path) if hasattr(path, "read") else open_file(path)


def _refuse_many_scans(image, source, name):
    """A progressive JPEG draws the whole picture in each of its scans: ten, as a rule."""
    if image.format not in ("JPEG", "MPO") or not image.info.get("progressive"):
        return
    place = source.tell()
    source.seek(0)
    scans = source.read().count(b"\xff\xda")
    source.seek(place)
    if scans > MAX_SCANS:
        raise DataError(f"{name}: a JPEG of {scans} scans – save it again")


def in_place_of_an_image(path) -> str:
    """What is there instead, and what to do."""
    start = b""
    with suppress(OSError, TypeError), open_file(path) as file:
        start = file.read(64)
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6", b"%PDF", b"8BPS")):
        return "a document, of PostScript, PDF or Photoshop – export it as PNG"
    if start[4:8] == b"ftyp":
        return "a HEIC photograph or a film, which Pillow does not read – convert it to JPEG"
    if instead := in_place_of_a_file(start):
        return f"{instead[0]}, not an image – {instead[1]}"
    return "cannot be read (not an image) – replace or remove it"


def upright_size(image) -> tuple[int, int]:
    """(width, height) once the EXIF rotation is applied, by the header alone."""
    exif = Image.Image.getexif(image)  # PngImageFile's decodes all pixels, to look behind them
    turned = exif.get(ORIENTATION, 1) > 4
    return image.size[::-1] if turned else image.size


def refuse_too_large(image, name):
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} pixels – scale it down to at most {MAX_PIXELS:,}"
        )
    if max(width, height) > MAX_SIDE:
        wrong = f"{width} x {height} pixels – cut it to at most {MAX_SIDE:,} a side"
        raise DataError(f"{name}: {wrong}")


def decode(path, shorter=None) -> np.ndarray:
    """Image file -> (H, W, 3) uint8 RGB, as `rgb` makes it.

    raises  DataError naming the file: unreadable, truncated, or refused by `rgb`
    """
    with opened(path, shorter) as image:
        return rgb(image, path, shorter)


def rgb(image, name="image", shorter=None) -> np.ndarray:
    """PIL image -> (H, W, 3) uint8 RGB.

    EXIF rotation is applied; palettes and CMYK are converted; alpha is composited over white (a
    transparent pixel's hidden colour is not image content); 16-bit grey keeps its upper 8 bits;
    of an animation the first picture is taken. Float images are refused: they have no agreed range.

    shorter  a picture whose shorter side has more pixels is reduced to it; None: it never is
    raises   DataError that begins with `name`: truncated, float pixels, grey beyond 16 bits, or
             over MAX_PIXELS by its header
    """
    refuse_too_large(image, name)
    with _told_of(name):
        image = ImageOps.exif_transpose(image)  # which decodes it
    if image.mode == "F":
        raise DataError(f"{name}: float pixels have no agreed range – save as 8-bit")
    if image.mode.startswith("I"):
        image = Image.fromarray(grey_levels(image, name))

    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")

    # Antialiased, after whole pixels were averaged as far as that leaves twice the size.
    reduced = reduced_size(image.size, shorter)
    if reduced != image.size:
        image = image.resize(reduced, Image.Resampling.BILINEAR, reducing_gap=2)
    return np.array(image)


def grey_levels(image, name) -> np.ndarray:
    """Whole numbers -> (H, W) uint8: the upper 8 bits of 16, or all where none is above 255."""
    levels = np.asarray(image)
    least, most = levels.min(), levels.max()
    if least < 0 or most > 65535:
        raise DataError(
            f"{name}: levels from {least} to {most} have no agreed range – save as 8-bit or 16-bit"
        )
    return (levels if most <= 255 else levels >> 8).astype(np.uint8)
