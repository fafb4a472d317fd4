import pytest
from openai_stub import checkpoint, serving

from mmdora.cli import main
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.export import verify as module
from mmdora.export.verify import Pair, Side, summary, verify
from mmdora.records.reader import read_records


@pytest.fixture(scope="module")
def served(tiny_llava):
    return checkpoint(tiny_llava)


def test_the_same_checkpoint_says_the_same(served, capsys):
    with serving(served) as stub:
        assert main(["verify", "tiny-llava", "--server", stub.url, "--limit", "3", "--max-tokens", "12"]) == 0
        assert len(stub.asked) == 3 and {body["temperature"] for body in stub.asked} == {0}
    assert "3 answers equal, word for word; prompts and answers of as many tokens" in capsys.readouterr().out


def test_another_answer_is_named(served, capsys):
    def wrong(body):
        pieces, *counts = served(body)
        return [*pieces[:-1], " indeed"], *counts

    with serving(wrong) as stub:
        assert main(["verify", "tiny-llava", "--server", f"{stub.url}#mine", "--limit", "2"]) == 2
    told = capsys.readouterr()
    assert (
        "2 of 2 answers differ; the first: " in told.err and "indeed" in told.err and told.out.count("from character")
    )


def test_another_template_is_named(served):
    def longer(body):
        pieces, prompt, answer = served(body)
        return pieces, prompt + 1, answer

    with serving(longer) as stub:
        (pair,) = verify("tiny-llava", stub.url, limit=1, max_new_tokens=4, say=lambda _: None)
    assert "another chat template" in (pair.difference or "")


def test_questions_of_records(served, scene_records):
    with serving(served) as stub:
        pairs = verify("tiny-llava", stub.url, data=scene_records, limit=2, max_new_tokens=8)
        asked = [body["messages"][-1]["content"][-1]["text"] for body in stub.asked]
    records = read_records(scene_records)
    assert asked == [question_text(records[i]) for i in range(2)]
    assert [pair.difference for pair in pairs] == [None, None] and summary(pairs)


def test_the_end_of_turn_token_may_be_left_out():
    here = Side("yes", 30, 2)
    assert [Pair("x", here, Side("yes", 30, n)).difference is None for n in (0, 1, 2, 3, None)] == [
        False, True, True, False, True,
    ]  # fmt: skip
    assert module.summary([Pair("x", here, Side("yes", None, None))]).endswith("does not tell its token counts")
