"""CIDEr-D by hand, through pycocoevalcap; and that there is no way round its tokeniser."""

import math
import shutil
import sys
from types import ModuleType

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring import caption
from mmdora.evaluate.scoring.caption import cider
from mmdora.evaluate.scoring.scorers import score_rows

REFERENCES = [["Red dogs run fast."], ["two cats sleep here"]]


def needs_tokeniser():
    pytest.importorskip("pycocoevalcap.cider.cider")
    if shutil.which("java") is None:
        pytest.skip("no java")


def test_by_hand():
    """Every n-gram is in one of two references, so all weigh log 2, which cancels.

    The whole reference: cosine 1 for n = 1 to 4, times 10. Two of its four words: cosines 2/(√2 √4),
    1/√3, 0, 0; their mean, times the length penalty exp(-(1 - 3)²/72) in bigrams, times 10.
    """
    needs_tokeniser()
    assert cider(["red dogs run fast", "Two cats!"], REFERENCES) == pytest.approx(
        [10, 10 * (1 / math.sqrt(2) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)]
    )


def test_odd_line_breaks_shift_no_caption():
    needs_tokeniser()
    broken = ["red\rdogs run\u2028fast", "two cats sleep here"]
    assert cider(broken, REFERENCES) == pytest.approx([10, 10])
    assert cider(["", "two cats sleep here"], REFERENCES) == pytest.approx([0, 10])


def test_rows():
    needs_tokeniser()
    rows = [
        {"id": i, "answer": "", "prediction": text, "images": [f"{i}.jpg"], "meta": {"references": captions}}
        for i, (text, captions) in enumerate(zip(["red dogs run fast", "no"], REFERENCES, strict=True))
    ]
    scores = score_rows("caption", rows)
    assert scores.overall.value == pytest.approx(5) and scores.metric == "CIDEr"
    assert scores.overall.interval == pytest.approx((0, 10))


@pytest.fixture
def package(monkeypatch):
    """Stands for pycocoevalcap; its tokeniser gives nothing back, as one whose Java failed."""
    scorer, tokeniser = ModuleType("pycocoevalcap.cider.cider"), ModuleType("pycocoevalcap.tokenizer.ptbtokenizer")
    scorer.Cider = object  # type: ignore[attr-defined]
    tokeniser.PTBTokenizer = lambda: type("Tokeniser", (), {"tokenize": lambda self, given: {}})()  # type: ignore[attr-defined]
    for module in (scorer, tokeniser):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("pycocoevalcap", "pycocoevalcap.cider", "pycocoevalcap.tokenizer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(caption.shutil, "which", lambda name: "/bin/java")
    return tokeniser


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(MmdoraError, match=r"pip install 'mmdora\[eval\]'"):
        cider(["a"], [["a"]])


def test_without_java(package, monkeypatch):
    monkeypatch.setattr(caption.shutil, "which", lambda name: None)
    with pytest.raises(MmdoraError, match="there is no `java`"):
        cider(["a"], [["a"]])


def test_a_tokeniser_that_fails(package, monkeypatch):
    with pytest.raises(MmdoraError, match="gave back other captions"):
        cider(["a"], [["a"]])

    def refuse():
        raise PermissionError("read-only")

    monkeypatch.setattr(package, "PTBTokenizer", refuse)
    with pytest.raises(MmdoraError, match=r"cannot run \(read-only\)"):
        cider(["a"], [["a"]])


def test_a_caption_without_reference(package):
    with pytest.raises(MmdoraError, match="caption 1 has no reference"):
        cider(["a", "b"], [["a"], []])
