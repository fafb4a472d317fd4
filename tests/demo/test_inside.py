import json

import gradio as gr
import pytest
from evaluation_files import evaluation, graded
from tiny_run import config_for, silent

import mmdora
from mmdora.data_prep.easy_vqa import test_rows as easy_vqa_rows
from mmdora.demo.inside import Inside
from mmdora.demo.inside_tab import inside_tab, told
from mmdora.demo.many_tab import shown_in_compare
from mmdora.demo.question_sets import Known, QuestionSet
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.evaluate.scoring.significance import compare
from mmdora.evaluate.tasks import task_of
from mmdora.export.run import export
from mmdora.html import curve
from mmdora.records.images import image_bytes
from mmdora.train import train

NOTHING = Known([])  # None of the questions is in a set of the page.


@pytest.fixture(scope="module")
def results(scene_records, tmp_path_factory):
    """A run of two steps, and an evaluation beside it."""
    folder = tmp_path_factory.mktemp("results")
    train(config_for(scene_records, folder / "runs" / "dora", steps=2, evaluates=False, eval_every=None), say=silent)
    scored = folder / "eval" / "task" / "dora"
    scored.mkdir(parents=True)
    overall = {"score": 0.75, "n": 8, "interval95": [0.4, 0.9]}
    by_type = {"<i>kind</i>": {"score": 0.5, "n": 4, "interval95": None}}
    (scored / "metrics.json").write_text(json.dumps({"metric": "accuracy", "overall": overall, "by_type": by_type}))
    (scored / "errors.html").write_text('<h1 class="x">wrong & <script>1</script></h1>')
    return folder


def test_it_shows_models_curves_and_scores(results):
    inside = Inside({"base": "tiny-llava", "dora": str(results / "runs" / "dora")}, results)
    page = inside.html()
    assert "a base that mmdora carries" in page and "<dd>records.jsonl</dd>" in page and "2 steps, " in page
    assert "vision     dora" in page and page.count("<svg") == 1 and len(curve(results / "runs" / "dora")) == 2
    assert "75.0%" in page and "40.0 – 90.0" in page and "&lt;i&gt;kind&lt;/i&gt;" in page and "<i>kind" not in page
    assert str(results) not in page, "tells where the server keeps its files"


def test_an_export_is_told_from_its_facts_and_another_checkpoint_as_unknown(results, tiny_llava, tmp_path):
    out = tmp_path / "dora-merged"
    export(results / "runs" / "dora", out, scores={"easy-VQA": 0.953, "<b>": 7}, parity="tensors", say=silent)
    page = Inside({"merged": str(out)}).html()
    for fact in ("<dt>base</dt><dd>tiny-llava</dd>", "adapted with dora", "<dt>data</dt><dd>records.jsonl</dd>"):
        assert fact in page
    assert "<dt>easy-VQA</dt><dd>95.3%</dd>" in page and "<dt>&lt;b&gt;</dt><dd>7</dd>" in page
    assert "vision     dora" in page and str(tmp_path) not in page and str(results) not in page
    (out / "README.md").write_text("# Lies\n\nOf nothing.\n\n## Scores\n\n| | |\n|---|---|\n| lies | 1 |\n")
    assert "lies" not in Inside({"merged": str(out)}).html()
    (out / "mmdora.json").unlink()
    page = Inside({"merged": str(out)}).html()
    assert "nothing more is known, as it has no mmdora.json" in page and "95.3%" not in page and "lies" not in page


def test_the_gallery_is_shut_in(results):
    inside = Inside({"dora": "tiny-llava"}, results)
    page = inside.gallery("dora")
    assert 'sandbox=""' in page and "<script" not in page and "&lt;script&gt;" in page
    assert inside.gallery("../../etc") == inside.gallery(None) == ""


def test_how_far_adapters_moved_is_what_analyze_says(results):
    inside = Inside({"dora": str(results / "runs" / "dora")}, results)
    assert list(inside.adapters) == ["dora"]
    page = inside.moved()
    rows = mmdora.analyze({"dora": results / "runs" / "dora"}, say=silent)
    shares = {
        part: sum(r.share for r in rows if r.modality == part and r.step == rows[-1].step) for part in ("vision",)
    }
    assert f"<td>{shares['vision']:.1%}</td>" in page and page.count("data:image/png;base64,") == 3
    assert page.count("<img alt=") == 3


def test_nothing_to_see_is_no_error_and_no_folder_is(tmp_path):
    assert "openai" not in Inside({"s": "openai:http://127.0.0.1:1/v1#m"}).html()
    assert Inside({"base": "tiny-llava"}, tmp_path).adapters == {}
    with pytest.raises(MmdoraError, match=r"--results .*no such folder"):
        Inside({}, tmp_path / "none")


def test_each_task_has_its_table(tmp_path):
    for task, value in (("easy-vqa", 0.25), ("scenes-nlvr2", 0.625)):
        for name in ("base", "dora"):
            folder = tmp_path / "eval" / task / name
            folder.mkdir(parents=True)
            overall = {"score": value + 0.125 * (name == "dora"), "n": 8, "interval95": [0.1, 0.9]}
            scores = {"task": task, "metric": "accuracy", "overall": overall, "by_type": {}}
            (folder / "metrics.json").write_text(json.dumps(scores))
            (folder / "errors.html").write_text(f"{task} {name}")
    inside = Inside({"dora": "tiny-llava", "base": "tiny-llava"}, tmp_path)
    page = inside.html()
    first, second = page.partition("Evaluation: scenes-nlvr2")[::2]
    assert "Evaluation: easy-vqa" in first and "37.5%" in first and "25.0%" in first and "75.0%" not in first
    assert "75.0%" in second and "62.5%" in second and first.index("37.5%") < first.index("25.0%")
    assert "scenes-nlvr2 base" in inside.gallery("base: scenes-nlvr2")
    (tmp_path / "eval" / "easy-vqa" / "errors.html").write_text("both of them")
    assert "both of them" in inside.gallery("side by side: easy-vqa") and len(inside.galleries) == 5


def test_a_pair_is_two_models_with_what_is_theirs(results, tmp_path):
    run = results / "runs" / "dora"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dora").symlink_to(run)
    for name in ("BASE", "dora", "majority"):
        evaluation(tmp_path / "eval" / "task" / name, "task", graded("+-"))
    inside = Inside({"base": "tiny-llava", "DoRA": "tiny-llava", "other": "tiny-llava"}, tmp_path)
    assert list(inside.scores["task"]) == ["base", "DoRA"] and list(inside.runs) == ["DoRA"]
    pairs = dict(inside.pairs())
    assert list(pairs) == ["base and DoRA", "base and other", "DoRA and other"]
    assert "majority" not in inside.html(), "it is no model of the page"
    assert inside.differences(NOTHING) == ""
    assert "Where they differ: task" in pairs["base and DoRA"].differences(NOTHING)
    assert [list(pair.adapters) for pair in pairs.values()] == [["DoRA"], [], ["DoRA"]]
    assert pairs["base and other"].differences(NOTHING) == "" and "<svg" not in pairs["base and other"].html()


def test_where_two_differ_is_what_their_predictions_say(tmp_path):
    first = evaluation(tmp_path / "eval" / "task" / "a", "task", graded("++++------"))
    second = evaluation(tmp_path / "eval" / "task" / "b", "task", graded("+---+++++-"))
    page = Inside({"a": "tiny-llava", "b": "tiny-llava"}, tmp_path).differences(NOTHING)
    p = compare("exact", *([row | {"images": [row["id"]], "meta": {}} for row in rows] for rows in (first, second))).p
    assert f"p = {p:.2g} " in page and "asked 10 questions" in page
    assert "data-row" not in page and "<img" not in page
    cells = page.partition("</table>")[0].split("<td>")
    assert [cell.partition("<")[0] for cell in cells if cell[0].isdigit()] == ["1", "3", "5", "1"]
    a_more, b_more = page.partition("b scores more")[::2]
    assert all(f"&lt;b&gt;{i}&lt;/b&gt;?" in a_more for i in (1, 2, 3)) and "&gt;4&lt;" not in a_more
    assert all(f"&lt;b&gt;{i}&lt;/b&gt;?" in b_more for i in (4, 5, 6, 7, 8)) and "no (0)" in b_more
    assert "<b>" not in page


def test_a_question_of_the_pages_sets_shows_its_picture_and_opens_in_compare(tmp_path):
    rows = easy_vqa_rows()[:6]
    questions = [question_text(row) for row in rows]
    asked = [{"id": row["id"], "question": question} for row, question in zip(rows, questions, strict=True)]
    asked[2]["question"] = "another question with this id?"
    for name, marks in (("a", "++++++"), ("b", "+--+++")):
        folder = tmp_path / "eval" / "task" / name
        answered = [row | own for row, own in zip(evaluation(folder, "task", graded(marks)), asked, strict=True)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    known = Known([QuestionSet("first", task_of("exact"), []), QuestionSet("second", task_of("easy-vqa"), rows)])
    page = Inside({"a": "tiny-llava", "b": "tiny-llava"}, tmp_path).differences(known)
    assert page.count("data-row") == page.count("<img") == 1 and 'data-row="1:1"' in page
    found = known.row("1:1")
    assert found is not None and found[1]["id"] == rows[1]["id"] and found[0].name == "easy-vqa"
    picture, second, question, tabs = shown_in_compare(*found)
    assert image_bytes(rows[1]["images"][0])[0] == picture.read_bytes() and second is None
    assert question == questions[1] and tabs.selected == "compare"
    assert [known.row(place) for place in ("", "1", "1:6", "2:0", "0:0", "1:-1", "1:1\n", "¹:1")] == [None] * 8


def test_right_is_the_full_score_and_the_furthest_apart_come_first(tmp_path):
    graded_by_people = [("a", 0.6), ("b", 1.0), ("c", 0.3), ("d", 1.0), ("e", 0.9), ("f", 0.8), ("g", 0.7)]
    evaluation(tmp_path / "eval" / "vqa" / "a", "vqa", graded_by_people)
    evaluation(tmp_path / "eval" / "vqa" / "b", "vqa", [("x", score) for score in (0, 1.0, 0, 0, 0, 0, 0)])
    page = Inside({"a": "tiny-llava", "b": "tiny-llava"}, tmp_path).differences(NOTHING)
    cells = page.partition("</table>")[0].split("<td>")
    assert [cell.partition("<")[0] for cell in cells if cell[0].isdigit()] == ["1", "1", "0", "5"]
    shown = [page.index(answer) for answer in ("d (1)", "e (0.9)", "f (0.8)", "g (0.7)", "a (0.6)")]
    assert shown == sorted(shown) and "c (0.3)" not in page


def test_scores_that_are_no_share_are_not_counted_as_right(tmp_path):
    evaluation(tmp_path / "eval" / "c" / "a", "c", [("a circle", 2.5), ("a shape", 0.5)])
    evaluation(tmp_path / "eval" / "c" / "b", "c", [("a circle", 2.5), ("a red shape", 1.5)])
    page = Inside({"a": "tiny-llava", "b": "tiny-llava"}, tmp_path).differences(NOTHING)
    assert "McNemar" not in page and "a red shape (1.5)" in page and "a scores more" not in page


def test_names_with_and_make_no_pair_disappear():
    pairs = Inside(dict.fromkeys(("a", "b and c", "a and b", "c"), "tiny-llava")).pairs()
    assert len(pairs) == 6 and [title for title, _ in pairs].count("a and b and c") == 2


@pytest.mark.parametrize(
    "row", ['{"id": "0", "question": "q", "answer": "a", "score": 1}', '{"id": "0", "score": "high"}', "[1]", "{"]
)
def test_damaged_predictions_are_one_line_without_the_folder(tmp_path, row):
    for name in "ab":
        evaluation(tmp_path / "eval" / "t" / name, "t", graded("+-"))
    (tmp_path / "eval" / "t" / "b" / "predictions.jsonl").write_text(row + "\n")
    with pytest.raises(MmdoraError, match=r"^b/predictions\.jsonl: not the predictions"):
        Inside({"a": "tiny-llava", "b": "tiny-llava"}, tmp_path).differences(NOTHING)


def test_a_visitor_is_not_told_where_files_are(tmp_path):
    def show():
        raise MmdoraError(f"{tmp_path}/eval/b/errors.html: larger than 32 MiB, which no gallery is")

    with pytest.raises(gr.Error, match=r"^'?errors\.html: larger than 32 MiB"):
        told(show)()


@pytest.mark.parametrize("damage", [{"overall": 3}, {"overall": None}, {"by_type": None}, {"by_type": {"x": {}}}])
def test_numbers_of_no_evaluation(tmp_path, damage):
    folder = tmp_path / "eval" / "t" / "a"
    evaluation(folder, "t", graded("+-"))
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(MmdoraError, match=r"metrics\.json: not the numbers of an evaluation"):
        Inside({"a": "tiny-llava"}, tmp_path).html()


@pytest.mark.parametrize(("count", "tabs"), [(1, 1), (2, 1), (3, 5), (4, 8)])
def test_a_tab_for_each_pair_where_there_are_several(count, tabs):
    with gr.Blocks() as blocks:
        inside_tab(Inside({f"m{i}": "tiny-llava" for i in range(count)}), NOTHING, [])
    assert sum(isinstance(block, gr.Tab) for block in blocks.blocks.values()) == tabs
