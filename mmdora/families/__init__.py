"""Model families: how each one reads conversations and pictures, learns answers and writes them.

A family is one object around a processor. `family_of` chooses it once, after a model or processor was loaded; all other
code asks the object. `family.Family` serves every image-text-to-text architecture of transformers; each module beside
it holds what one family does differently.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from mmdora.families.around import Chameleon, Emu3, GotOcr2, Janus, Molmo2
from mmdora.families.blip import Blip2, InstructBlip
from mmdora.families.continuing import Fuyu, Git, Kosmos2, Kosmos25
from mmdora.families.family import Family
from mmdora.families.florence import Florence2
from mmdora.families.glm import Glm4v
from mmdora.families.llava import Llava
from mmdora.families.paligemma import PaliGemma
from mmdora.families.prompt import Prompt, ask
from mmdora.families.smolvlm import SmolVLM
from mmdora.families.template import IGNORE
from mmdora.families.text import Text
from mmdora.families.vlbart import VLBart

__all__ = [
    "IGNORE",
    "Blip2",
    "Family",
    "Florence2",
    "Glm4v",
    "InstructBlip",
    "Llava",
    "PaliGemma",
    "Prompt",
    "SmolVLM",
    "Text",
    "VLBart",
    "ask",
    "family_of",
]

OWN: dict[str, type[Family]] = {
    "Blip2Processor": Blip2,
    "ChameleonProcessor": Chameleon,
    "Emu3Processor": Emu3,
    "Florence2Processor": Florence2,
    "FuyuProcessor": Fuyu,
    "GitProcessor": Git,
    "Glm46VProcessor": Glm4v,
    "Glm4vProcessor": Glm4v,
    "GotOcr2Processor": GotOcr2,
    "InstructBlipProcessor": InstructBlip,
    "JanusProcessor": Janus,
    "Kosmos2Processor": Kosmos2,
    "Kosmos2_5Processor": Kosmos25,
    "LlavaProcessor": Llava,
    "Molmo2Processor": Molmo2,
    "PaliGemmaProcessor": PaliGemma,
    "SmolVLMProcessor": SmolVLM,
    "VLBartProcessor": VLBart,
}
"""Class name of a processor -> the family that differs from the general one."""


def family_of(processor: Any) -> Family:
    """The family that a processor belongs to; a bare tokenizer is that of a language model."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return Text(processor)
    return OWN.get(type(processor).__name__, Family)(processor)
