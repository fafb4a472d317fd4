"""SmolVLM: the general family, but the tiles of a picture are counted from its size, without a picture.

Its processor has no rule for the number of tokens, and asking it with blank pictures of every size is slow: it enlarges
each to 2,048 pixels. Its image processor foretells the rows and columns of tiles.
"""

from __future__ import annotations

from functools import cached_property

from mmdora.errors import MmdoraError
from mmdora.families.expansion import PROBES, Expansions, Size, Written
from mmdora.families.family import Family
from mmdora.records.row import Row, videos_of


class Tiles(Expansions):
    """What the processor writes for the tiles that its image processor foretells."""

    @cached_property
    def foretold(self) -> bool:
        """Whether the image processor foretells what the processor writes."""
        return all(self._foretold(size) == super(Tiles, self)._asked((size,))[0] for size in PROBES)

    def _asked(self, sizes: tuple[Size, ...]) -> list[Written]:
        return [self._foretold(size) for size in sizes] if self.foretold else super()._asked(sizes)

    def _foretold(self, size: Size) -> Written:
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(*size)
        text = self.processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
        return Written(text, len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]))


class SmolVLM(Family):
    """SmolVLM and SmolVLM2, whose processor loses the pictures of a row that has a video too."""

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        if row["images"] and videos_of(row):
            raise MmdoraError("holds pictures and a video, and this model's processor reads one kind; leave one out")

    @cached_property
    def expansions(self) -> Tiles:
        return Tiles(self.processor, self.placeholder, self.read)
