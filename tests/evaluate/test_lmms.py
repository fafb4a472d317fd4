"""The plug-in inside lmms-eval itself, where that is installed (`pip install lmms-eval`, which pins many packages)."""

import pytest
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.models.load import load
from mmdora.records.row import row_of

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

COLOURS = {"red": "is there a red object?", "teal": "describe the picture.", "black": "name the color of the object."}


def messages_of(document: dict) -> list[dict]:
    content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
    return [{"role": "user", "content": content}]


def test_lmms_eval_finds_the_model_and_gets_our_answers(tiny_llava, tmp_path):
    from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import get_model  # pyright: ignore[reportMissingImports]

    documents = [{"image": Image.new("RGB", (64, 64), name), "question": text} for name, text in COLOURS.items()]

    def requests(**settings) -> list:
        given = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]} | settings
        facts = {"task": "t", "doc_id": 0, "repeats": 1}
        return [
            Instance("generate_until", (d["question"], messages_of, given, i, "t", "test"), i, facts)
            for i, d in enumerate(documents)
        ]

    options = {"batch_size": 2, "device": "cpu"}
    model = get_model("mmdora").create_from_arg_string(f"pretrained={tiny_llava}", options)
    model.task_dict["t"] = {"test": documents}
    rows = []
    for name, text in COLOURS.items():
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": name}]}
        rows.append({"id": name, "messages": [asked, answer], "images": [f"{name}.png"], "meta": {}})
    ours = evaluate(*load(tiny_llava), [row_of(row, tmp_path) for row in rows], max_new_tokens=16)
    answers = [row["prediction"] for row in ours.rows]
    assert model.generate_until(requests()) == answers and len(set(answers)) == 3
    assert model.generate_until(requests(until=[answers[1][4:]]))[1] == answers[1][:4]
    with pytest.raises(MmdoraError, match="greedily"):
        model.generate_until(requests(temperature=0.7))
