"""GLM-4V (GLM-4.1V, GLM-4.5V, GLM-4.6V): the general family, whose answers end where the next turn begins."""

from __future__ import annotations

from functools import cached_property

from mmdora.families.ending import Ending
from mmdora.families.family import Family

NEXT_TURN = "<|user|>"
"""GLM-4's generation configs stop at this token, and its templates write nothing else behind an answer."""


class Glm4v(Family):
    """The token that opens the next turn of the user is learned as the end of each answer."""

    @cached_property
    def ending(self) -> Ending:
        known = NEXT_TURN in self.tokenizer.get_vocab()
        return Ending(self.tokenizer, None, NEXT_TURN) if known else super().ending
