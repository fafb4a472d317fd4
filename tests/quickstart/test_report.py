"""The report page: self-contained, escaped, complete."""

import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmdora.evaluate.table import ScoreRow
from mmdora.quickstart.report import GalleryExample, Report, draw_curves, report_html, write_report

EVIL = "<script>alert('x')</script>"


def _scores(overall: float, yes_no: float, other: float | None) -> dict:
    def part(accuracy: float, n: int) -> dict:
        return {
            "score": accuracy,
            "n": n,
            "interval95": [accuracy - 0.01, accuracy + 0.01],
        }

    by_type = {"yes/no": part(yes_no, 7136)} | ({} if other is None else {"other": part(other, 2537)})
    return {"metric": "accuracy", "overall": part(overall, 9673), "by_type": by_type}


def _png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def report() -> Report:
    answers = {"base": ("no idea", False), "LoRA": (EVIL, False), "DoRA": ("teal", True)}
    return Report(
        title="tiny-llava on easy-VQA",
        lead="A & B",
        verdict=["DoRA and LoRA cannot be told apart here.", "One seed."],
        tables={
            "easy-VQA": [
                ScoreRow("question only", _scores(0.67, 0.825, 0.233), "majority answer per question"),
                ScoreRow("base", _scores(0.61, 0.70, None)),
                ScoreRow("LoRA", _scores(0.962, 0.97, 0.94)),
                ScoreRow("DoRA", _scores(0.964, 0.971, 0.945)),
            ],
            "captions": [ScoreRow("DoRA", {**_scores(2.5, 2.4, None), "metric": "CIDEr"})],
        },
        curves={"LoRA": [(1, 2.0), (10, 0.5), (20, 0.1)], "DoRA": [(1, 2.0), (10, 0.45), (20, 0.09)]},
        galleries={
            "Drawn at random": [GalleryExample([_png("teal")], "what color is it?", "teal", answers)],
            "Empty": [],
        },
        parity={"LoRA": "max-rel 3e-7"},
        plans={"LoRA": "vision  lora"},
        timing=[("training", "4 min 2 s")],
        facts={"device": "CPU"},
        commands=["mmdora demo base=tiny-llava"],
    )


class _Balanced(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def test_page_is_well_formed_and_shows_everything(report: Report) -> None:
    page = report_html(report)
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    for text in ("96.2%", "96.4%", "94.5%", "9,673", "what color is it?", "4 min 2 s", "max-rel 3e-7", "vision  lora"):
        assert text in page
    assert "A &amp; B" in page
    assert "Empty" not in page, "an empty gallery leaves no heading"
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_model_output_is_escaped(report: Report) -> None:
    page = report_html(report)
    assert EVIL not in page and "<script" not in page
    assert "&lt;script&gt;" in page


def test_page_asks_for_nothing_outside_itself(report: Report) -> None:
    page = report_html(report)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["'](?!data:|#)""", page)
    assert not re.search(r"url\((?!#)|@import|<link|<iframe", page)


def test_missing_answer_type_is_a_dash(report: Report) -> None:
    assert "–<span" in report_html(report)


def test_curves_take_the_colours_of_the_page(report: Report) -> None:
    svg = draw_curves(report.curves)
    assert svg.startswith("<svg") and "var(--c1)" in svg and "var(--c2)" in svg and "var(--ink)" in svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", svg)


def test_write_leaves_no_partial_file(report: Report, tmp_path) -> None:
    write_report(report, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_numbers_over_one_fill_no_more_than_their_bar(report: Report) -> None:
    page = report_html(report)
    assert "captions: CIDEr × 100" in page and "<td>250.0<span" in page
    assert max(float(width) for width in re.findall(r'<i style="width: ([\d.]+)%', page)) == 100


def test_captions_are_neither_right_nor_wrong() -> None:
    example = GalleryExample([_png("red"), _png("teal")], "a caption?", "a red one", {"base": ("a thing", None)})
    page = report_html(Report(title="t", lead="", verdict=[], tables={}, galleries={"Captions": [example]}))
    assert "a reference: a red one" in page and 'class="right"' not in page and 'class="wrong"' not in page
    assert page.count("<img") == 2
