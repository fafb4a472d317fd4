"""CIDEr (Vedantam et al. 2015) of captions, by pycocoevalcap after its PTB tokeniser, as published scores are."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np

from mmdora.errors import MmdoraError


def needs() -> None:
    """Raise if pycocoevalcap or Java is not there: other tokenisers give other scores, so there is no second choice."""
    try:
        import pycocoevalcap.cider.cider  # pyright: ignore[reportMissingImports] # noqa: F401
    except ImportError:
        raise MmdoraError("CIDEr needs pycocoevalcap: pip install 'mmdora[eval]'") from None
    if shutil.which("java") is None:
        raise MmdoraError(
            "CIDEr needs the PTB tokeniser, a Java program, and there is no `java`; install one (1.8 or newer)"
        )


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of every caption, [rows] float64, mostly within 0 and 2 (papers print 100 times the mean).

    Words weigh by how rare they are among the references given here, so a row's score depends on the
    other rows, and of one image it is 0.

    Args:
        references: the captions that people wrote for each image.

    Raises:
        MmdoraError: as `needs`, for a caption without reference, or when the tokeniser fails.
    """
    needs()
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]

    if not all(references):
        raise MmdoraError(f"caption {list(map(bool, references)).index(False)} has no reference")
    truth, said = _tokenise(references), _tokenise([[caption] for caption in captions])
    return np.asarray(Cider().compute_score(truth, said)[1])


def _tokenise(captions: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    # one line a caption: the tokeniser breaks lines at \r, \x85 or \u2028 too, and every later caption would shift
    given = {i: [{"caption": " ".join(text.split())} for text in texts] for i, texts in enumerate(captions)}
    try:
        found = PTBTokenizer().tokenize(given)
    except OSError as error:  # it writes beside its jar
        raise MmdoraError(
            f"the PTB tokeniser of pycocoevalcap cannot run ({error}); install it where you may write"
        ) from None
    if [len(texts) for texts in given.values()] != [len(found.get(i, ())) for i in given]:
        raise MmdoraError("the PTB tokeniser gave back other captions than it got; try `java -version`")
    return found
