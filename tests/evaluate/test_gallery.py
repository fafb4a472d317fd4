"""The page of errors and the tables: complete, escaped, self-contained, honest in their order."""

import base64
import io
import itertools
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mmdora.evaluate.gallery import PICTURED, write_gallery
from mmdora.evaluate.scoring.significance import Comparison
from mmdora.evaluate.table import ScoreRow, comparisons_table, scores_table
from mmdora.evaluate.tasks import TASKS
from mmdora.prepare.record import asked
from mmdora.records.record import Record
from mmdora.records.row import row_of

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The cards of a page, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.cards: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self.cards.append("")
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self.open and data.strip():
            self.cards[-1] += f"{data.strip()}|"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "small.png")
    Image.new("RGB", (900, 600), "red").save(tmp_path / "large.png")
    return tmp_path


def rows_of(records: Sequence[Record], texts: list[str], scores: list[float]) -> list[dict[str, Any]]:
    return [
        {"id": r["id"], "question": r["messages"][0]["content"][-1].get("text"), "answer": "yes", "prediction": text,
         "images": r["images"], "meta": r["meta"], "type": r["meta"].get("type"), "score": score}
        for r, text, score in zip(records, texts, scores, strict=True)
    ]  # fmt: skip


def page_of(
    root: Path, records: Sequence[Record], answers: dict[str, list[dict[str, Any]]], task: str = "vqav2"
) -> str:
    write_gallery(root / "errors.html", TASKS[task], answers, [row_of(record, root) for record in records])
    assert not list(root.glob("*.partial"))
    return (root / "errors.html").read_text(encoding="utf-8")


def test_errors_are_shown_with_picture_references_and_scores(root):
    records = [
        asked(0, ["small.png", "large.png"], f"Is it {EVIL}?", "yes", answers=["yes"] * 7 + ["no"] * 3, type="yes/no"),
        asked(1, ["small.png"], "Right one?", "yes", type="yes/no"),
        asked(2, [], "No picture?", "yes", type="other"),
    ]
    text = page_of(root, records, {"m": rows_of(records, [EVIL, "yes", ""], [0.6, 1.0, 0.0])})
    page = Page(text)
    assert EVIL not in text and "<script" not in text and "&lt;script&gt;" in text
    assert len(page.cards) == 2 and "Right one?" not in "".join(page.cards)
    assert "No picture?" in page.cards[0] and "no answer" in page.cards[0], "the lowest score comes first"
    assert "yes ×7, no ×3" in page.cards[1] and "0.60" in page.cards[1]
    kinds = [uri.partition(";")[0] for uri in page.pictures]
    assert kinds == ["data:image/png", "data:image/jpeg"]
    assert len(text) < 40_000, "a large picture goes in as a small copy"
    assert "2 of 3 answers" in text
    assert not re.search(r"""(?:src|href|action)\s*=\s*["'](?!data:)""", text) and "@import" not in text


def test_boxes_are_drawn_on_the_picture_and_their_colours_named(root):
    records = [asked(0, ["small.png"], "Where is it?", "[0, 0, 500, 500]", boxes_in="relative")]
    boxes = {"answer": [(0.0, 0.0, 0.5, 0.5)], "prediction": [(0.5, 0.5, 1.0, 1.0)]}
    rows = [row | {"boxes": boxes} for row in rows_of(records, ["[500, 500, 1000, 1000]"], [0.0])]
    page = Page(page_of(root, records, {"dora": rows}, "boxes"))
    assert "boxes:|the reference|dora|" in page.cards[0]
    picture = Image.open(io.BytesIO(base64.b64decode(page.pictures[0].partition("base64,")[2]))).convert("RGB")
    teal, places = (0, 128, 128), [(10, 0), (10, 31), (40, 32), (63, 50), (50, 10), (10, 50)]
    seen = [picture.getpixel(place) for place in places]
    assert seen[0] == seen[1] != teal and seen[2] == seen[3] not in (teal, seen[0]) and seen[4:] == [teal, teal]


def test_where_models_differ_comes_first_and_the_page_stays_small(root):
    records = [asked(i, ["small.png"], f"Question {i}?", "yes", type="ab"[i % 2]) for i in range(3 * PICTURED)]
    first = rows_of(records, ["no"] * len(records), [0.0] * len(records))
    second = rows_of(records, ["no"] * len(records), [float(i == 100) for i in range(len(records))])
    text = page_of(root, records, {"base": first, "dora": second}, "easy-vqa")
    page = Page(text)
    listed = re.findall(r'<th scope="row">Question (\d+)', text)
    assert len(page.cards) == len(page.pictures) == PICTURED and len({*listed}) == 2 * PICTURED, "not all are shown"
    assert "All of them are below, 60 with their pictures" in text
    # The filters: one question that only dora gets right, and two kinds; the CSS of each names their classes.
    labels = re.findall(r'id="(f\d)"(?: checked)?> (.*) \((\d+)\)', text)
    assert labels == [("f0", "all", "180"), ("f1", "dora right, base wrong", "1"), ("f2", "a", "90"), ("f3", "b", "90")]
    selectors = dict(re.findall(r"#(f\d):checked\) \.asked:not\((.*)\) \{", text))
    assert selectors == {"f1": ".r1.w0", "f2": ".k0", "f3": ".k1"}
    assert text.count('class="asked w0 r1 k0"') == 1 and text.count('class="asked w0 w1 k1"') == 90
    assert "Question 100?" in page.cards[0]
    shown = [int(re.findall(r"Question (\d+)", card)[0]) for card in page.cards]
    assert shown[1:] != sorted(shown[1:]), "not drawn at random"
    again = page_of(root, records, {"base": first, "dora": second}, "easy-vqa")
    assert [card[:20] for card in Page(again).cards] == [card[:20] for card in page.cards]


def part(value: float, n: int = 100) -> dict[str, Any]:
    return {"score": value, "n": n, "interval95": [value - 0.01, value + 0.01]}


def printed(*arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(scores_table(*arguments))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_pair_is_readable_in_80_columns():
    """A p-value had lost its exponent where the table was too wide."""
    names = ("base", "LoRA of rank 128 on everything", "DoRA of rank 128 on everything")
    found = Comparison(0.354, (0.3401, 0.3702), 4.1e-123, "McNemar, exact")
    console = Console(file=io.StringIO(), width=80)
    console.print(comparisons_table({pair: found for pair in itertools.combinations(names, 2)}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("4.1e-123") == shown.count("+34.0 – +37.0") == shown.count("+35.4") == 3 and "…" not in shown


def test_the_table_shows_kinds_and_intervals():
    by_type = {"yes/no": part(0.97, 7136), "other": part(0.94, 2537)}
    rows = [
        ScoreRow("base", {"metric": "exact match", "overall": part(0.61, 9673), "by_type": {"yes/no": part(0.7)}}),
        ScoreRow("DoRA", {"metric": "exact match", "overall": part(0.964, 9673), "by_type": by_type}),
    ]
    shown = printed(rows, "title")
    for text in ("61.0%", "96.4%", "95.4 – 97.4", "yes/no", "other", "9,673", "–"):
        assert text in shown


def test_cider_is_printed_as_papers_do_and_many_kinds_are_left_to_the_file():
    kinds = {f"kind {i}": part(0.5) for i in range(9)}
    shown = printed([ScoreRow("m", {"metric": "CIDEr", "overall": part(1.153), "by_type": kinds})])
    assert "115.3 " in shown and "%" not in shown.replace("95% interval", "") and "kind 1" not in shown
