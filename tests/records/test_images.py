"""One decoder for every room: what it accepts, what it does to the pixels, what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
import tiff
from PIL import ExifTags, Image, ImageFile

from mmdora.demo.pictures import check_upload, read_image
from mmdora.errors import MmdoraError
from mmdora.records import images
from mmdora.records.images import FileRef, decode, image_size, locate, open_image
from mmdora.records.pixels import to_rgb


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(image)[y, x].tolist())


def test_orientation_is_applied():
    picture = Image.new("RGB", (4, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    assert decode(encoded(picture, "JPEG", exif=exif), "x").size == (2, 4)


def test_transparent_pixels_show_white_not_what_they_hide():
    hidden = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode(encoded(hidden, "PNG"), "x").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 32768], [65535, 257]], dtype=np.uint16)
    decoded = decode(encoded(Image.fromarray(values), "PNG"), "x")
    assert [pixel(decoded, *place)[0] for place in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 128, 255, 1]


def test_cmyk_becomes_rgb():
    decoded = decode(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"), "x")
    red, _, blue = pixel(decoded, 0, 0)
    assert red > 200 > 60 > blue


def test_only_the_first_frame_of_an_animation():
    frames = [Image.new("P", (3, 3), index) for index in (0, 1)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x").size == (3, 3)


def test_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(MmdoraError, match="10x10 is over the limit"):
        decode(data, "x")


def test_a_decompression_bomb_is_told_by_its_size(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(MmdoraError, match="over the limit of 160 megapixels"):
        decode(encoded(Image.new("RGB", (10, 10)), "PNG"), "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a known format"),
        (encoded(Image.new("RGB", (64, 64), "blue"), "PNG")[:80], "damaged or cut short|not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:400], "damaged or cut short"),
        (encoded(Image.new("RGB", (4, 4)), "PDF"), "not an image of a known format"),
    ],
    ids=["empty", "svg", "cut png", "cut jpeg", "pdf"],  # Bytes with a date or with noise make another name each time.
)
def test_bad_bytes_are_named_without_a_memory_address(data, message):
    with pytest.raises(MmdoraError, match=message) as caught:
        decode(data, "shot.jpg")
    assert "shot.jpg" in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "/",
        "file:///etc/passwd",
        "http://169.254.169.254/x.png",
        "link.png",
        "",
        "a\0b",
        ".",
    ],
)
def test_nothing_outside_the_root_is_read(tmp_path: Path, name: str):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MmdoraError):
        locate(name, root)


def test_a_file_below_the_root_is_read(tmp_path: Path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (5, 3), "green").save(tmp_path / "a" / "b.png")
    assert open_image(FileRef("a/b.png", tmp_path)).size == (5, 3)
    with pytest.raises(MmdoraError, match="no such file"):
        open_image(FileRef("a/c.png", tmp_path))


@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
@pytest.mark.parametrize("kind", images.FORMATS)
def test_the_size_told_by_the_header_is_the_decoded_one(tmp_path: Path, kind: str, orientation: int | None):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "a").write_bytes(encoded(Image.new("RGB", (5, 3)), kind, **({"exif": exif} if orientation else {})))
    width, height = open_image(FileRef("a", tmp_path)).size
    assert image_size(FileRef("a", tmp_path)) == (height, width)
    turns = orientation in (5, 6, 8) and kind not in ("BMP", "GIF")  # these two hold no EXIF
    assert (width, height) == ((3, 5) if turns else (5, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_size_needs_the_header_only(tmp_path: Path, kind: str):
    (tmp_path / "a").write_bytes(encoded(Image.effect_noise((64, 48), 50), kind)[:700])
    assert image_size(FileRef("a", tmp_path)) == (48, 64)
    with pytest.raises(MmdoraError, match="damaged or cut short"):
        open_image(FileRef("a", tmp_path))


def test_a_size_is_refused_like_a_picture(tmp_path: Path, monkeypatch):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "none.png").write_bytes(b"")
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    refusals = {"a.png": "10x10 is over", "text.png": "not an image", "none.png": "is empty", "../a.png": "outside"}
    for name, message in refusals.items():
        with pytest.raises(MmdoraError, match=message):
            image_size(FileRef(name, tmp_path))
    monkeypatch.setattr(images, "MAX_BYTES", 3)
    with pytest.raises(MmdoraError, match="larger than"):
        image_size(FileRef("text.png", tmp_path))


def test_an_absolute_path_that_leads_below_the_root_is_read(tmp_path: Path):
    (tmp_path / "root").mkdir()
    for place in (tmp_path, tmp_path / "root"):
        Image.new("RGB", (5, 3)).save(place / "a.png")
    assert locate(str(tmp_path / "root/a.png"), tmp_path / "root") == (tmp_path / "root/a.png").resolve()
    assert locate(str(tmp_path / "a.png"), Path("/")) == (tmp_path / "a.png").resolve()
    for outside in (tmp_path / "a.png", tmp_path / "root/../a.png"):
        with pytest.raises(MmdoraError, match="leads outside the images root"):
            locate(str(outside), tmp_path / "root")


def test_a_photograph_of_24_megapixels_is_read_and_the_page_keeps_its_limit(tmp_path: Path):
    Image.new("L", (6000, 4000), 7).save(tmp_path / "photo.png")
    assert image_size(FileRef("photo.png", tmp_path)) == (4000, 6000)
    assert open_image(FileRef("photo.png", tmp_path)).size == (6000, 4000)
    with pytest.raises(MmdoraError, match="over the limit of 20 megapixels"):
        check_upload(tmp_path / "photo.png")
    with pytest.raises(MmdoraError, match="over the limit of 20 megapixels"):
        read_image(tmp_path / "photo.png")


def ramp(white: float, kind: str) -> np.ndarray:
    """[1, 3]: black, about a quarter, white."""
    return np.array([[0, white / 4, white]]).astype(kind)


@pytest.mark.parametrize(
    "samples",
    [ramp(255, "uint16"), ramp(4095, "uint16"), ramp(65535, "uint16"), ramp(255, "int32"), ramp(4095, "int32"),
     ramp(65535, "int32"), ramp(1, "float32"), ramp(255, "float32")],
    ids=lambda samples: f"{samples.dtype}-{samples.max():g}",
)  # fmt: skip
def test_deep_samples_show_by_their_range(tmp_path: Path, samples: np.ndarray):
    Image.fromarray(samples).save(tmp_path / "a.tif")
    shown = np.asarray(open_image(FileRef("a.tif", tmp_path)))
    assert shown.shape == (1, 3, 3) and np.abs(shown[0, :, 0].astype(int) - [0, 64, 255]).max() <= 1


@pytest.mark.parametrize(
    "samples",
    [np.array([[0, 70000]], "int32"), np.array([[-5, 9]], "int32"), np.array([[0, 300]], "float32"),
     np.array([[-1, 1]], "float32"), np.array([[0, np.nan]], "float32")],
    ids=str,
)  # fmt: skip
def test_deep_samples_without_a_scale_are_refused_in_a_line(tmp_path: Path, samples: np.ndarray):
    Image.fromarray(samples).save(tmp_path / "a.tif")
    for look in (open_image, image_size):
        with pytest.raises(
            MmdoraError, match=r"a\.tif: its samples are .* nothing says which value is white; save it as 8 bits"
        ):
            look(FileRef("a.tif", tmp_path))


COLOURS = np.array([[[255, 0, 0], [0, 128, 0]], [[12, 34, 56], [255, 255, 255]]], dtype=np.uint8)
MODES = {
    "RGB PNG": ("RGB", "PNG", 0),
    "palette PNG": ("P", "PNG", 0),
    "palette GIF": ("P", "GIF", 0),
    "RGBA PNG": ("RGBA", "PNG", 0),
    "RGB TIFF": ("RGB", "TIFF", 0),
    "CMYK TIFF": ("CMYK", "TIFF", 1),
    "RGBA WEBP": ("RGBA", "WEBP", 0),
}


@pytest.mark.parametrize("name", MODES)
def test_colours_are_those_that_were_saved(name: str):
    mode, kind, off = MODES[name]
    picture = Image.fromarray(COLOURS)
    picture = picture.quantize(4, dither=Image.Dither.NONE) if mode == "P" else picture.convert(mode)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    shown = np.asarray(decode(encoded(picture, kind, **lossless), "x"))
    assert np.abs(shown.astype(int) - COLOURS).max() <= off


def test_a_palette_with_a_transparent_colour_shows_white():
    picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    shown = np.asarray(decode(encoded(picture, "PNG", transparency=0), "x"))
    assert shown.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_colours_multiplied_by_the_transparency(tmp_path: Path):
    plain = Image.fromarray(np.array([[[255, 0, 0, 128]]], dtype=np.uint8))
    assert np.abs(np.asarray(to_rgb(plain.convert("RGBa"))).astype(int) - np.asarray(to_rgb(plain))).max() <= 1


def test_the_first_picture_of_a_photograph_of_several():
    first, second = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (8, 4), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    red, _, blue = pixel(decode(data, "x"), 0, 0)
    assert red > 200 > 60 > blue


@pytest.mark.skipif("AVIF" not in images.FORMATS, reason="this Pillow was built without AVIF")
def test_avif():
    red, _, blue = pixel(decode(encoded(Image.new("RGB", (8, 4), "red"), "AVIF"), "x"), 0, 0)
    assert red > 200 > 60 > blue


HALVES = Path(__file__).parent
"""Holds two_halves.heic and .avif, 64 x 48 pixels, red on the left and blue on the right; pillow-heif and Pillow wrote
them."""


def red_and_blue(picture: Image.Image) -> None:
    assert picture.size == (64, 48) and picture.mode == "RGB"
    for column, expected in ((8, (220, 30, 30)), (56, (30, 40, 210))):
        assert all(abs(a - b) < 6 for a, b in zip(pixel(picture, column, 20), expected, strict=True))


@pytest.mark.skipif("AVIF" not in images.FORMATS, reason="this Pillow was built without AVIF")
def test_an_avif_file_of_another_process():
    red_and_blue(open_image(FileRef("two_halves.avif", HALVES)))


def test_a_heic_file_of_another_process():
    pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    red_and_blue(open_image(FileRef("two_halves.heic", HALVES)))
    assert image_size(FileRef("two_halves.heic", HALVES)) == (48, 64)


def test_a_heic_file_without_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "pillow_heif", None)
    monkeypatch.setattr(images, "FORMATS", tuple(form for form in images.FORMATS if form != "HEIF"))
    with pytest.raises(MmdoraError, match=r"a HEIC photograph; pip install 'mmdora\[heic\]', or save it as JPEG"):
        open_image(FileRef("two_halves.heic", HALVES))


def test_heic_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "pillow_heif", None)
    monkeypatch.setattr(images, "FORMATS", ("PNG",))
    start = b"\0\0\0\x18ftyp"
    with pytest.raises(MmdoraError, match=r"x: a HEIC photograph; pip install 'mmdora\[heic\]'"):
        decode(start + b"heic" + bytes(60), "x")
    with pytest.raises(MmdoraError, match="x: an AVIF picture, which this build of Pillow cannot read"):
        decode(start + b"avif" + bytes(60), "x")


def test_colours_that_pillow_does_not_convert():
    with pytest.raises(MmdoraError, match="x: its colours are CIELAB; save it as RGB"):
        decode(encoded(Image.new("LAB", (2, 2)), "TIFF"), "x")


@pytest.mark.parametrize(("high", "said"), [(b"\xff\x0f", "only 12 bits are in use"), (b"\xff\xff", None)])
def test_colours_of_12_bits_in_16_are_not_black(high: bytes, said: str | None):
    """Pillow keeps the upper 8 of the 16 bits, so that white of 12 bits would be 15 of 255."""
    data = tiff.of(16, 3, high * (tiff.WIDTH * tiff.HEIGHT * 3))
    if said is None:
        assert decode(data, "x").getextrema() == ((255, 255),) * 3
    else:
        with pytest.raises(MmdoraError, match=said):
            decode(data, "x")


def test_grey_of_12_bits_in_16_is_scaled():
    assert decode(tiff.of(16, 1, b"\xff\x0f" * (tiff.WIDTH * tiff.HEIGHT)), "x").getextrema() == ((255, 255),) * 3


def test_packed_samples_of_12_bits_are_a_tiff_that_cannot_be_read():
    data = tiff.of(12, 3, b"\xff" * (tiff.WIDTH * tiff.HEIGHT * 3 * 12 // 8))
    with pytest.raises(MmdoraError, match=r"x: a TIFF that cannot be read: .*12 bits per sample"):
        decode(data, "x")


@pytest.mark.parametrize(
    "start",
    [b"\0\0\0\x18ftypmp42", b"\0\0\0\x14ftypqt  ", b"\0\0\0\x1cftypisom", b"\x1a\x45\xdf\xa3\x01\0\0\0\0\0\0\0"],
)
def test_a_video_in_place_of_a_picture_is_called_one(start, tmp_path):
    (tmp_path / "a.png").write_bytes(start + bytes(100))
    with pytest.raises(MmdoraError, match=r"a\.png: a video, where a picture is expected"):
        open_image(FileRef("a.png", tmp_path))
