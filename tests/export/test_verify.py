import pytest
import torch
from openai_stub import checkpoint, serving

from mmdora.adapt.inject import adapted_modules, inject
from mmdora.adapter_files.adapters import save_adapter
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.export.verify import Pair, Side, summary, verify
from mmdora.models.load import load
from mmdora.records.reader import read_records


@pytest.fixture(scope="module")
def served(tiny_llava):
    return checkpoint(tiny_llava)


def test_the_same_checkpoint_says_the_same(served, capsys):
    with serving(served) as stub:
        assert main(["verify", "tiny-llava", "--server", stub.url, "--limit", "3", "--max-tokens", "12"]) == 0
        assert len(stub.asked) == 3 and {body["temperature"] for body in stub.asked} == {0}
    assert "3 answers equal, token by token; prompts too" in capsys.readouterr().out


def test_a_server_without_token_ids_is_compared_by_words(served):
    with serving(lambda body: served(body)[:3]) as stub:
        pairs = verify("tiny-llava", stub.url, limit=1, max_new_tokens=4)
    assert summary(pairs) == "1 answers equal, word for word; prompts and answers of as many tokens"


def test_another_answer_is_named(served, capsys):
    def wrong(body):
        pieces, *counts = served(body)[:3]
        return [*pieces[:-1], " indeed"], *counts

    with serving(wrong) as stub:
        assert main(["verify", "tiny-llava", "--server", f"{stub.url}#mine", "--limit", "2"]) == 2
    told = capsys.readouterr()
    assert (
        "2 of 2 answers differ; the first: " in told.err and "indeed" in told.err and told.out.count("from character")
    )


def test_another_template_is_named(served):
    def longer(body):
        pieces, prompt, answer, *_ = served(body)
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
    assert summary([Pair("x", here, Side("yes", None, None))]).endswith("does not tell its token counts")


def by_ids(here, there, *, text="caf\ufffd", other="caf"):
    return Pair("x", Side(text, 3, 3, (1, 2, 3), here), Side(other, 3, 3, (1, 2, 3), there))


def test_equal_tokens_are_equal_though_an_incomplete_character_is_printed_differently():
    assert by_ids((7, 8), (7, 8)).difference is None
    assert by_ids((7, 8), (7, 8), text="a\ufffdb", other="a\ufffd\ufffdb").difference is None
    assert "written differently: 'cafe'" in str(by_ids((7, 8), (7, 8), text="cafe", other="coffee").difference)
    assert by_ids((7, 8), (7, 9), text="cafe", other="cafe").difference == (
        "from token 1 on, written alike: [8] here, [9] there"
    )
    # A server that gives no ids may leave an incomplete character out.
    assert Pair("x", Side("caf\ufffd", 3, 3, (1, 2, 3), (7, 8)), Side("caf", 3, 3)).difference is None


def test_prompts_of_the_same_length_with_other_tokens_are_named():
    pair = Pair("x", Side("a", 3, 1, (1, 2, 3), (7,)), Side("a", 3, 1, (1, 5, 3), (7,)))
    assert pair.difference == "the prompt has token 2 here, 5 there at place 1 (another chat template or tokenizer)"


def test_empty_answers_are_counted():
    said, empty = by_ids((7,), (7,), text="yes", other="yes"), by_ids((), (), text="", other="")
    assert summary([said, empty]).endswith("prompts too; 1 of them are empty (an end of turn alone)")
    assert summary([empty]).endswith("so they show little: ask other questions by --data")
    assert "empty" not in summary([said])


def test_whether_the_base_is_served(served, tiny_llava, tmp_path, capsys):
    """The adapter writes other answers; a server of the base gives the base's."""
    model, _ = load("tiny-llava")
    inject(model, {"language": {"method": "lora", "rank": 2}})
    torch.manual_seed(0)
    for module in adapted_modules(model).values():
        assert module.lora_B is not None
        torch.nn.init.normal_(module.lora_B, std=1.0)
        module.refresh()
    save_adapter(model, tmp_path / "lora", base="tiny-llava")
    ask = ["verify", str(tmp_path / "lora"), "--limit", "2", "--max-tokens", "6"]
    with serving(served) as stub:
        assert main([*ask, "--server", stub.url]) == 2
        assert "--base BASE tells whether this is what the base answers" in capsys.readouterr().err
        assert main([*ask, "--server", stub.url, "--base", "tiny-llava"]) == 2
        assert "the server answers as the base does, all 2 times" in capsys.readouterr().err
        pairs = verify("tiny-llava", stub.url, base=str(tmp_path / "lora"), limit=2, max_new_tokens=6)
        assert summary(pairs).endswith("the base answers 2 of them differently")
        pairs = verify("tiny-llava", stub.url, base="tiny-llava", limit=1, max_new_tokens=6)
        assert "the base answers 0 of them differently, so they do not show which" in summary(pairs)
    wrong = Pair("x", Side("a", 1, 1), Side("b", 1, 1), Side("c", 1, 1))
    with pytest.raises(MmdoraError, match="nor is it the base that is served: 0 of 1"):
        summary([wrong])
