"""A picture is checked as soon as it is uploaded, and shown as the models see it."""

import asyncio

import gradio as gr
import pytest
from PIL import Image

from mmdora.demo.pictures import shown_by_browsers, thumbnail
from mmdora.demo.uploads import received
from mmdora.errors import MmdoraError
from mmdora.records import images


@pytest.fixture
def uploaded(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    warned = []
    monkeypatch.setattr(gr, "Warning", warned.append)

    def upload(name, content=None, **options):
        path = tmp_path / name
        if content is None:
            Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(options.pop("mode", "RGBA")).save(path, **options)
        else:
            path.write_bytes(content)
        return asyncio.run(received({"path": str(path)})), warned

    return upload


def test_a_bad_upload_is_taken_off_at_once_with_the_reason(uploaded, tmp_path):
    for content, told in ((b"no picture", "not an image of a known format"), (b"", "empty"), (b"\x89PNG\r\n", "PNG")):
        path, warned = uploaded("x.png", content)
        assert path is None and told in warned[-1] and str(tmp_path) not in warned[-1]
    assert asyncio.run(received({"path": "/etc/passwd"})) is None


def test_a_good_one_stays_and_one_that_browsers_do_not_show_becomes_png(uploaded, tmp_path):
    assert uploaded("x.png")[0] == str(tmp_path / "x.png")
    path, _ = uploaded("x.tiff")
    assert path == str(tmp_path / "x.png")
    with Image.open(path) as shown:
        assert shown.getpixel((0, 0)) == (255, 255, 255), "alpha lies on the ground that models see"


@pytest.mark.skipif("AVIF" not in images.FORMATS, reason="this Pillow has no AVIF")
def test_avif_opens(tmp_path):
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "x.avif")
    assert shown_by_browsers(tmp_path / "x.avif") == tmp_path / "x.avif"


def test_heic_opens_where_the_extra_is_there(tmp_path):
    if "HEIF" in images.FORMATS:
        Image.new("RGB", (16, 16), "teal").save(tmp_path / "x.heic")
        assert shown_by_browsers(tmp_path / "x.heic").suffix == ".png"
    else:
        (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 20)
        with pytest.raises(MmdoraError, match=r"mmdora\[heic\]"):
            shown_by_browsers(tmp_path / "x.heic")


def test_a_thumbnail_is_small(tmp_path):
    Image.effect_noise((900, 600), 90).save(tmp_path / "x.png")
    assert len(thumbnail(tmp_path / "x.png")) < 8_000
