"""Fuyu, GIT, Kosmos-2 and Kosmos-2.5: models that continue a question about a picture, and have no chat template.

Their prompts are those of their authors: a line break behind the question (Fuyu's `Generate a coco-style caption.\\n`),
`Question: … Answer:` (Kosmos-2, Peng et al. 2023, arXiv:2306.14824), and the question as it is (GIT; Kosmos-2.5, whose
tasks are words such as `<ocr>` and `<md>`).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor

from mmdora.families.ending import Ending
from mmdora.families.one_picture import Appended
from mmdora.families.prompt import Prompt
from mmdora.families.template import inputs_of


class Fuyu(Appended):
    """Fuyu, whose processor puts the patches before the text and a mark behind it that asks for the answer."""

    default = Appended.default + "{{- '\\n' }}"

    def __init__(self, processor: Any):
        super().__init__(processor)
        self.image_id = processor.image_token_id

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        # The other output, `image_patches`, is the older name of the same tensor, which the model is about to drop.
        return self.processor(text=texts, images=images, return_legacy_image_output=False, return_tensors="pt")


class Kosmos2(Appended):
    """Kosmos-2, whose processor writes the picture's ids before the text."""

    default = "{{- 'Question: ' }}" + Appended.default + "{{- ' Answer:' }}"


class Kosmos25(Appended):
    """Kosmos-2.5, whose processor writes the start token, the picture's tokens and then the text."""


class Git(Appended):
    """GIT, whose model itself puts the picture's features before the text, so they are no tokens of a row."""

    default = "{{- '[CLS]' }}" + Appended.default
    """The question behind BERT's start token, as GIT's authors ask."""

    @cached_property
    def ending(self) -> Ending:
        """GIT's captions end with BERT's separator."""
        return Ending(self.tokenizer, self.tokenizer.sep_token)

    def _question_alone(self, prompt: Prompt) -> dict[str, Tensor]:
        """The processor's tokenizer would put BERT's end token behind the question."""
        text = self.render(prompt.messages, generation_prompt=True)
        words = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        pixels = self.processor.image_processor(images=prompt.images, return_tensors="pt")
        given = {name: words[name] for name in ("input_ids", "attention_mask")}
        return given | inputs_of(self.processor, pixels)
