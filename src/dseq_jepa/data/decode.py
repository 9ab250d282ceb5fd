"""From a file's bytes to pixels: one function for every picture of every data set.

    python -c 'from dseq_jepa.data.decode import decode; print(decode(open("cat.jpg", "rb").read(), "cat.jpg").shape)'

Ordinary JPEGs go through simplejpeg (libjpeg-turbo), everything else through Pillow; a machine without simplejpeg uses
Pillow for all. Both give the same pixels, bit for bit. Choices, the same for every format:

- EXIF orientation is applied, so a picture stands as its photographer saw it.
- Alpha is dropped, not composited, as `PIL.Image.convert("RGB")` does in every published ImageNet pipeline.
- 16-bit grey is scaled to 8 bits (65535 becomes 255), never clipped. CMYK and YCCK become RGB as Pillow converts them.
- A JPEG whose data end early is an error, although most decoders return it half grey. Damage *inside* the data that
  libjpeg notices is an error too; Pillow alone never hears of that, one reason why `DECODER` is recorded.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, features

from dseq_jepa.errors import UserError

try:
    import simplejpeg
except ImportError:  # some GPU images lack it; Pillow decodes the same pixels, slower
    simplejpeg = None

DECODER = f"pillow {PIL.__version__} (libjpeg-turbo {features.version('libjpeg_turbo')})"
"""What decodes here, recorded in provenance."""
if simplejpeg is not None:
    DECODER = f"simplejpeg {simplejpeg.__version__}, {DECODER}"

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_UPRIGHT = 1
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's readers raise on damaged files; each format has its own habits."""


class BadImage(UserError):  # noqa: N818 - a user's problem first, an exception second
    """A picture file that cannot be read or decoded; the message names it."""


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as `decode` returns it, from its header.

    Raises:
        BadImage: the file cannot be read, or is no picture.

    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except _PILLOW_ERRORS as error:
        raise BadImage(f"{path}: not a readable picture ({error})") from None


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Decode a picture file.

    Raises:
        BadImage: the file cannot be read, or `decode` refuses it.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    return decode(data, str(path))


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a picture.

    Args:
        data: the whole file.
        name: of the file, for errors only.

    Returns:
        (H, W, 3) RGB pixels, upright.

    Raises:
        BadImage: truncated, corrupt, empty or no picture; the message names the file and the number of bytes found.

    """
    try:
        image_HWC = _decode_ordinary_jpeg(data)
        return _decode_any(data) if image_HWC is None else image_HWC
    except _PILLOW_ERRORS as error:
        raise BadImage(f"{name}: {_reason(data, error)} ({len(data):,} bytes found)") from None


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "empty file"
    if data.lstrip()[:1] == b"<":
        return "not a picture but a text document, such as a saved web page"
    if isinstance(error, PIL.UnidentifiedImageError):
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            return "truncated or corrupt: the header cannot be read"
        return f"not a picture of a known format ({', '.join(_FORMATS)})"
    return f"truncated or corrupt: {error}"


def _decode_ordinary_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """Decode with simplejpeg, or None where Pillow must: other formats, CMYK, rotated.

    Raises:
        ValueError: the data end early or are damaged.

    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # Pillow says what is wrong
    huge = height * width > (Image.MAX_IMAGE_PIXELS or height * width)  # Pillow guards against decompression bombs
    if huge or color not in ("YCbCr", "Gray") or _orientation_of_jpeg(data) != _UPRIGHT:
        return None
    try:
        return _simplejpeg_pixels(data, strict=True)
    except ValueError as error:
        # Left-over bytes before the end marker mean that nothing is missing; every reference pipeline accepts them.
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise
        return _simplejpeg_pixels(data, strict=False)


def _simplejpeg_pixels(data: bytes, *, strict: bool) -> NDArray[np.uint8]:
    """Pixels as Pillow computes them: accurate DCT, smooth chroma; strict: libjpeg's warnings raise."""
    image_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colorspace="RGB", fastdct=False, fastupsample=False, strict=strict
    )
    return image_HWC


def _orientation_of_jpeg(data: bytes) -> int:
    """The orientation tag; the file is opened with Pillow only where there can be one."""
    if not _has_metadata(data):
        return _UPRIGHT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _orientation(image)


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG's header holds EXIF or XMP; true also for a header that cannot be followed: Pillow judges."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xDA, 0xE1):  # start of the pixels, EXIF or XMP
            return marker == 0xE1
        position += 2 + (data[position + 2] << 8) + data[position + 3]
    return True


def _orientation(image: Image.Image) -> int:
    """The orientation tag; a picture whose EXIF block is unreadable stays as it is stored."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    except _PILLOW_ERRORS:
        return _UPRIGHT


def _decode_any(data: bytes) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and palette transparency: neither changes the pixels used here
        if data.startswith(b"\x89PNG"):
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.verify()  # checksums, which reading alone does not look at
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            upright = _turned(image, _orientation(image))
            return np.array(_to_rgb(upright))  # a copy: writable, as simplejpeg's arrays are


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation (2 to 8; anything else leaves the picture alone)."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey_HW * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no agreed 8-bit range")
    return image.convert("RGB")
