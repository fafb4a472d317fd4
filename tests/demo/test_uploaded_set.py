"""Questions that a visitor uploads: what is read, and what is refused."""

import io
import json
import zipfile

import pytest
from demo_page import png

from mmdora.demo import uploaded_set
from mmdora.demo.uploaded_set import MAX_ENTRIES, MAX_QUESTIONS, read_upload
from mmdora.errors import MmdoraError
from mmdora.records.images import image_bytes

CSV = "image,question,answer\nphotos/a.png,what is it?,red\n,2 + 2?,4\nphotos/a.png,and now?,\n"


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def test_a_zip_of_a_table_and_its_pictures(tmp_path):
    path = zipped(tmp_path / "own.zip", **{"mine__t.csv": CSV, "mine__photos__a.png": png(1)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/mine/._t.csv", "x")
    questions = read_upload(path)
    assert (questions.name, len(questions.rows)) == ("own.zip", 3)
    first, second, third = questions.rows
    assert image_bytes(first["images"][0])[0] == png(1) and second["images"] == []
    assert first["messages"][-1]["content"][0]["text"] == "red" and third["messages"][-1]["content"] == []
    path.unlink()
    with pytest.raises(MmdoraError, match="no longer on the server"):
        questions.rows[0]


def test_a_table_alone_and_records(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "4"}) + "\n")
    assert len(read_upload(tmp_path / "t.jsonl").rows) == 1
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]  # fmt: skip
    record = json.dumps({"id": "r", "messages": messages, "images": ["a.png"]})
    assert read_upload(zipped(tmp_path / "r.zip", **{"t.jsonl": record, "a.png": png()})).rows[0]["id"] == "r"


@pytest.mark.parametrize(
    ("name", "told"),
    [("../../../etc/passwd", "not in the ZIP"), ("/etc/passwd", "not in the ZIP"), ("http://x/a.png", "not in the ZIP"),
     ("photos/../../a.png", "not in the ZIP"), ("b.png", "not in the ZIP")],
)  # fmt: skip
def test_no_name_leads_out_of_the_zip(tmp_path, name, told):
    (tmp_path / "a.png").write_bytes(png())
    table = f"image,question,answer\n{name},what?,red\n"
    with pytest.raises(MmdoraError, match=told):
        read_upload(zipped(tmp_path / "own.zip", **{"t.csv": table, "c.png": png()}))


def test_limits(tmp_path, monkeypatch):
    table = "image,question,answer\na.png,what?,red\n"

    def refused(told, **entries):
        with pytest.raises(MmdoraError, match=told) as error:
            read_upload(zipped(tmp_path / "own.zip", **entries))
        assert str(tmp_path) not in str(error.value) and "/tmp" not in str(error.value)

    refused("over 300 questions", **{"t.csv": "question,answer\n" + "a?,b\n" * (MAX_QUESTIONS + 1)})
    refused("over 1,200 entries", **{f"{n}.txt": "" for n in range(MAX_ENTRIES + 1)})
    refused("larger than 10 MB", **{"t.csv": table, "a.png": b"\0" * 20_000_000})  # 20 kB in the ZIP
    refused("larger than 2 MB", **{"t.csv": "question,answer\n" + "a" * 3_000_000})
    refused("not an image of a known format", **{"t.csv": table, "a.png": "no picture"})
    refused("0 tables", **{"a.png": png()})
    refused("2 tables", **{"t.csv": table, "u.csv": table, "a.png": png()})
    refused("no column 'question'", **{"t.csv": "image,prompt\na.png,what?\n", "a.png": png()})
    refused("no rows", **{"t.csv": "question,answer\n"})
    refused("begins with the names", **{"t.csv": "a,a\n1,2\n"})
    refused("broken JSON", **{"t.jsonl": "{"})
    refused("expected an object", **{"t.jsonl": "[1]"})
    refused("not UTF-8", **{"t.csv": b"question\n\xff\xfe"})
    monkeypatch.setattr(uploaded_set, "MAX_UPLOAD_PIXELS", 100)
    refused("limit of 0 megapixels", **{"t.csv": table, "a.png": png()})


def test_what_is_no_upload_is_told(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(MmdoraError, match="neither a ZIP nor a table"):
        read_upload(tmp_path / "x.zip")
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(MmdoraError, match="upload one ZIP"):
        read_upload(tmp_path / "t.csv")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", "question,answer\n" + "a?,b\n" * 200)
    damaged = bytearray(content.getvalue())
    damaged[40:60] = b"\0" * 20
    (tmp_path / "d.zip").write_bytes(damaged)
    with pytest.raises(MmdoraError, match="cannot be read from the ZIP"):
        read_upload(tmp_path / "d.zip")
