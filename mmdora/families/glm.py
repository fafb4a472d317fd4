"""GLM-4V (GLM-4.1V, GLM-4.5V, GLM-4.6V): the general family, but its answers end where the next turn begins."""

from __future__ import annotations

from functools import cached_property

from mmdora.families.ending import Ending
from mmdora.families.family import Family

NEXT_TURN = "<|user|>"
"""GLM-4's generation configs stop at this token, and its templates write nothing else after an answer."""


class Glm4v(Family):
    """GLM-4V, which learns the token that opens the user's next turn as the end of each answer."""

    @cached_property
    def ending(self) -> Ending:
        known = NEXT_TURN in self.tokenizer.get_vocab()
        return Ending(self.tokenizer, None, NEXT_TURN) if known else super().ending
