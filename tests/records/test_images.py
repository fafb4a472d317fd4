"""One decoder for every room: what it accepts, what it does to the pixels, what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from mmdora.errors import MmdoraError
from mmdora.records import images
from mmdora.records.images import FileRef, decode, image_size, locate, open_image


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
    with pytest.raises(MmdoraError, match="over the limit of 20 megapixels"):
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
)
def test_bad_bytes_are_named_without_a_memory_address(data, message):
    with pytest.raises(MmdoraError, match=message) as caught:
        decode(data, "shot.jpg")
    assert "shot.jpg" in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "file:///etc/passwd", "http://169.254.169.254/x.png", "link.png", "", "a\0b", "."],
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
