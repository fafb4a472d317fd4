"""Scores captions by CIDEr (Vedantam et al. 2015) with pycocoevalcap and its PTB tokeniser, as published scores are."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np

from mmdora.errors import MmdoraError


def needs() -> None:
    """Raise an MmdoraError if pycocoevalcap or Java is missing; no other tokeniser would give the published scores."""
    try:
        import pycocoevalcap.cider.cider  # pyright: ignore[reportMissingImports] # noqa: F401
    except ImportError:
        raise MmdoraError("CIDEr needs pycocoevalcap: pip install 'mmdora[eval]'") from None
    if shutil.which("java") is None:
        raise MmdoraError(
            "CIDEr needs the PTB tokeniser, a Java program, and there is no `java`; install one (1.8 or newer)"
        )


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of every caption, [rows] float64, mostly from 0 to 2 (papers print 100 times the mean).

    A word counts more the rarer it is among all the given references. The score of a row thus depends on the other
    rows, and a single image alone scores 0.

    Args:
        references: the captions that people wrote for each image.

    Raises:
        MmdoraError: if a caption has no reference, the tokeniser fails, or something is missing (see `needs`).
    """
    needs()
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]

    if not all(references):
        raise MmdoraError(f"caption {list(map(bool, references)).index(False)} has no reference")
    truth, said = _tokenise(references), _tokenise([[caption] for caption in captions])
    return np.asarray(Cider().compute_score(truth, said)[1])


def _tokenise(captions: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    # A caption must be one line. The tokeniser also breaks lines at \r, \x85 or \u2028, and later captions would shift.
    given = {i: [{"caption": " ".join(text.split())} for text in texts] for i, texts in enumerate(captions)}
    try:
        tokens = PTBTokenizer().tokenize(given)
    except OSError as error:  # The tokeniser writes files beside its jar.
        raise MmdoraError(
            f"the PTB tokeniser of pycocoevalcap cannot run ({error}); install it where you may write"
        ) from None
    if [len(texts) for texts in given.values()] != [len(tokens.get(i, ())) for i in given]:
        raise MmdoraError("the PTB tokeniser gave back other captions than it got; try `java -version`")
    return tokens
