"""Every kind of picture file is decoded right, or is one error that names the file."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dseq_jepa.data import decode as module
from dseq_jepa.data.decode import DECODER, BadImage, decode

REAL = Path(os.environ.get("DSEQ_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(params=["installed", "pillow only"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow only":
        monkeypatch.setattr(module, "simplejpeg", None)
    elif module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed here")
    return str(request.param)


def picture(height: int = 60, width: int = 84, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge and a little noise; no symmetry, so that any turn shows."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [200 * x, 230 * y, 120 * (x + y), 255 * np.ones_like(x)][:channels]
    image_HWC = np.stack(planes, axis=-1) + np.random.default_rng(seed).normal(0, 4, (height, width, channels))
    image_HWC[: height // 3, : width // 4] = 240
    return image_HWC.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def jpeg(**options: object) -> bytes:
    return encoded(Image.fromarray(picture()), **options)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_ordinary_jpegs_have_pillows_pixels(decoder: str, subsampling: str, progressive: bool, quality: int) -> None:
    data = jpeg(subsampling=subsampling, progressive=progressive, quality=quality)
    image_HWC = decode(data, "a.jpg")
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.writeable
    np.testing.assert_array_equal(image_HWC, by_pillow(data))


def test_odd_sizes_have_pillows_pixels(decoder: str) -> None:
    for height, width in [(1, 1), (1, 17), (7, 3), (33, 65)]:
        data = encoded(Image.fromarray(picture(height, width)), subsampling="4:2:0")
        np.testing.assert_array_equal(decode(data, "a.jpg"), by_pillow(data))


def test_real_photographs_have_pillows_pixels() -> None:
    files = sorted((REAL / "imagenet_fullres").glob("train/*/*"))[::4]
    files += sorted((REAL / "tiny_imagenet").glob("val/*/*"))[::40]
    if not files:
        pytest.skip(f"no real pictures under {REAL}; set DSEQ_REAL_DATA")
    for file in files:
        data = file.read_bytes()
        np.testing.assert_array_equal(decode(data, str(file)), by_pillow(data), err_msg=str(file))


def test_grey_becomes_three_equal_channels(decoder: str) -> None:
    for kind in ("JPEG", "PNG"):
        image_HWC = decode(encoded(Image.fromarray(picture()[..., 0]), kind), "a")
        assert image_HWC.shape == (60, 84, 3)
        assert (image_HWC == image_HWC[..., :1]).all()
        assert np.abs(image_HWC[..., 0].astype(int) - picture()[..., 0]).mean() < 3


def test_cmyk_is_not_inverted(decoder: str) -> None:
    """Adobe stores CMYK inverted; a reader that forgets it returns the negative."""
    data = encoded(Image.fromarray(picture()).convert("CMYK"), quality=95)
    assert b"Adobe" in data[:600]
    assert np.abs(decode(data, "a.jpg").astype(int) - picture()).mean() < 4


def test_ycck_is_not_inverted(decoder: str) -> None:
    """YCCK is CMYK whose first three planes are YCbCr; made here by declaring a 4-plane JPEG's transform as 2."""
    negative = Image.fromarray(255 - picture()).convert("YCbCr")  # Adobe's planes are those of the inverted inks
    yccx = np.dstack([np.asarray(negative), np.full((60, 84), 255, np.uint8)])
    # Pillow writes CMYK inverted with Adobe transform 0; inverting first stores the planes as they are.
    data = bytearray(encoded(Image.frombytes("CMYK", (84, 60), (255 - yccx).tobytes()), quality=95, subsampling=0))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    np.testing.assert_array_equal(decode(bytes(data), "a.jpg"), by_pillow(bytes(data)))
    assert np.abs(decode(bytes(data), "a.jpg").astype(int) - picture()).mean() < 4


def test_palette_transparency_and_alpha_keep_the_colours(decoder: str) -> None:
    opaque = Image.fromarray(picture())
    palette = opaque.quantize(64)
    data = encoded(palette, "PNG", transparency=bytes(range(64)))
    np.testing.assert_array_equal(decode(data, "a.png"), np.asarray(palette.convert("RGB")))
    with_alpha = opaque.copy()
    with_alpha.putalpha(Image.fromarray(picture()[..., 1]))
    np.testing.assert_array_equal(decode(encoded(with_alpha, "PNG"), "a.png"), picture())
    grey_alpha = encoded(with_alpha.convert("LA"), "PNG")
    assert decode(grey_alpha, "a.png").shape == (60, 84, 3)


def test_one_bit_png_is_black_and_white(decoder: str) -> None:
    image_HWC = decode(encoded(Image.fromarray(picture()[..., 0] > 100), "PNG"), "a.png")
    assert set(np.unique(image_HWC)) == {0, 255}


def test_sixteen_bit_grey_is_scaled_not_clipped(decoder: str) -> None:
    values_HW = np.linspace(0, 65535, 60 * 84).reshape(60, 84).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        image_HWC = decode(encoded(Image.fromarray(values_HW), kind), f"a.{kind}")
        np.testing.assert_array_equal(image_HWC[..., 0], np.round(values_HW / 257).astype(np.uint8))
        assert image_HWC.min() == 0
        assert image_HWC.max() == 255


def test_sixteen_bit_colour_is_scaled(decoder: str) -> None:
    values_HWC = np.random.default_rng(0).integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values_HWC)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    assert np.abs(decode(data, "a.png").astype(float) - values_HWC / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(decoder: str, orientation: int) -> None:
    """A camera held in any of the eight ways gives the same upright picture."""
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("JPEG", {"quality": 98, "subsampling": 0}), ("PNG", {})):
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
        image_HWC = decode(data, "a")
        assert image_HWC.shape == picture().shape
        assert np.abs(image_HWC.astype(int) - picture()).max() < 20


def test_orientation_in_xmp_alone_counts_too(decoder: str) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    image_HWC = decode(encoded(Image.fromarray(picture()[::-1, ::-1].copy()), xmp=packet, quality=98), "a.jpg")
    assert np.abs(image_HWC.astype(int) - picture()).mean() < 4


def test_unreadable_exif_leaves_the_picture_as_stored(decoder: str) -> None:
    data = jpeg(exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff broken")
    np.testing.assert_array_equal(decode(data, "a.jpg"), by_pillow(jpeg()))


def test_a_jpeg_named_png_and_a_png_named_jpeg_are_what_their_bytes_say(decoder: str) -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(picture()), "PNG"), "a.JPEG"), picture())
    assert decode(jpeg(), "a.png").shape == picture().shape


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_jpeg_is_an_error_and_not_half_grey(decoder: str, part: float, progressive: bool) -> None:
    data = jpeg(progressive=progressive)
    kept = data[: int(part * len(data))]
    with pytest.raises(BadImage, match=rf"^cats/7\.jpg: .*\({len(kept):,} bytes found\)$"):
        decode(kept, "cats/7.jpg")


def test_a_jpeg_whose_data_stop_before_a_valid_end_marker_is_an_error() -> None:
    if module.simplejpeg is None:
        pytest.skip("Pillow alone does not hear of damage inside the data")
    data = jpeg()
    with pytest.raises(BadImage, match="premature end"):
        decode(data[: len(data) * 4 // 5] + b"\xff\xd9", "a.jpg")


def test_left_over_bytes_do_not_make_a_picture_bad(decoder: str) -> None:
    for data in (jpeg() + b"abc" * 50, jpeg(progressive=True)[:-2] + b"\0\0\0\xff\xd9"):
        np.testing.assert_array_equal(decode(data, "a.jpg"), by_pillow(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty file \(0 bytes found\)"),
        (b"<!DOCTYPE html><html>404</html>", r"text document.*\(31 bytes found\)"),
        (b"GIMP" * 50, r"not a picture of a known format.*\(200 bytes found\)"),
        (b"\xff\xd8\xff", r"truncated or corrupt.*\(3 bytes found\)"),
        (b"\x89PNG\r\n\x1a\n", r"truncated or corrupt.*\(8 bytes found\)"),
    ],
)
def test_what_is_no_picture_says_so(decoder: str, data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=rf"^x/y\.jpg: .*{reason}"):
        decode(data, "x/y.jpg")


def test_a_truncated_or_corrupt_png_is_an_error(decoder: str) -> None:
    data = encoded(Image.fromarray(picture()), "PNG")
    broken = bytearray(data)
    broken[len(data) // 2] ^= 0xFF
    for content in (data[: len(data) // 2], data[:40], bytes(broken)):
        with pytest.raises(BadImage, match=r"a\.png"):
            decode(content, "a.png")


def test_any_damage_is_a_picture_or_a_bad_image(decoder: str) -> None:
    """Nothing else escapes, whatever the bytes."""
    random = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    sources = [
        jpeg(exif=exif),
        jpeg(progressive=True),
        encoded(Image.fromarray(picture()).quantize(16), "PNG"),
        encoded(Image.fromarray(picture()), "TIFF"),
        encoded(Image.fromarray(picture()), "BMP"),
        encoded(Image.fromarray(picture()), "WEBP"),
    ]
    for source in sources:
        for _ in range(60):
            data = bytearray(source[: random.integers(1, len(source) + 1)])
            for place in random.integers(0, min(len(data), 400), 3):
                data[place] = random.integers(256)
            try:
                image_HWC = decode(bytes(data), "a")
            except BadImage:
                continue
            assert image_HWC.ndim == 3
            assert image_HWC.shape[2] == 3


def test_a_decompression_bomb_is_refused(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(jpeg(), "a.jpg")


def test_the_decoder_is_named_with_its_versions() -> None:
    assert "pillow" in DECODER
    assert any(character.isdigit() for character in DECODER)
