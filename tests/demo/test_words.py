import pytest

from mmdora.demo.words import marked


def shown(texts):
    return ["".join(f"[{text}]" if differs else text for text, differs in own) for own in marked(*texts)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a red circle", "a blue circle"], ["a [red] circle", "a [blue] circle"]),
        (["a red circle", "a circle"], ["a [red] circle", "a circle"]),
        (["Yes.", "yes"], ["Yes.", "yes"]),
        (["a b c", "x y z"], ["[a b c]", "[x y z]"]),
        (["one  two\nthree", "one two four"], ["one  two\n[three]", "one two [four]"]),
        (["a b\n\nc", "x"], ["[a b]\n\n[c]", "[x]"]),
        (["a", ""], ["a", ""]),
        ([" ", "x"], [" ", "x"]),
        (["- a", "a"], ["[-] a", "a"]),
    ],
)
def test_words_that_differ_are_marked(texts, expected):
    assert shown(texts) == expected


def test_the_pieces_are_the_text():
    texts = ["  <b>one</b>\ttwo ", "two\n\n one  "]
    assert ["".join(text for text, _ in own) for own in marked(*texts)] == texts
