import json

import pytest
from tiny_run import config_for, silent

import mmdora
from mmdora.demo.inside import Inside, curve
from mmdora.errors import MmdoraError
from mmdora.train import train


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
    assert "A LLaVA small enough" in page and "<dd>records.jsonl</dd>" in page and "2 steps of" in page
    assert "vision     dora" in page and page.count("<svg") == 1 and len(curve(results / "runs" / "dora")) == 2
    assert "75.0%" in page and "40.0 – 90.0" in page and "&lt;i&gt;kind&lt;/i&gt;" in page and "<i>kind" not in page
    assert str(results) not in page, "tells where the server keeps its files"


def test_the_gallery_is_shut_in(results):
    inside = Inside({"base": "tiny-llava"}, results)
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
    inside = Inside({"dora": "tiny-llava"}, tmp_path)
    page = inside.html()
    first, second = page.partition("Evaluation: scenes-nlvr2")[::2]
    assert "Evaluation: easy-vqa" in first and "37.5%" in first and "25.0%" in first and "75.0%" not in first
    assert "75.0%" in second and "62.5%" in second and first.index("37.5%") < first.index("25.0%")
    assert "scenes-nlvr2 base" in inside.gallery("base, scenes-nlvr2")
