"""The lines of a card that ask a checkpoint a question in stock transformers.

Most processors read a conversation by themselves. Some leave the chat template to their tokenizer (BLIP-2), and some
bases have none at all (PaliGemma); then the text is given, and the picture beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from mmdora.families import Family, ask

QUESTION = "What is in the picture?"
_MODEL = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")"""
_CONTENT = f'content = [{{{{"type": "image", "path": "photo.jpg"}}}}, {{{{"type": "text", "text": "{QUESTION}"}}}}]'
_ANSWER = "print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"
BY_PROCESSOR = f"""\
{_MODEL}
{_CONTENT}
inputs = processor.apply_chat_template(
    [{{{{"role": "user", "content": content}}}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device, model.dtype)
{_ANSWER}"""
_READ = f"""\
picture = Image.open("photo.jpg").convert("RGB")
inputs = processor(text=text, images=picture, return_tensors="pt"{{more}}).to(model.device, model.dtype)
{_ANSWER}"""
BY_TOKENIZER = f"""\
from PIL import Image
{_MODEL}
{_CONTENT}
text = processor.tokenizer.apply_chat_template(
    [{{{{"role": "user", "content": content}}}}], add_generation_prompt=True, tokenize=False
)
{_READ}"""
BY_TEXT = f"""\
from PIL import Image
{_MODEL}
text = {{text!r}}
{_READ}"""
OF_TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "What is the capital of France?"}}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"""

OF_ADAPTER = """\
import mmdora{more}

model, processor = mmdora.load("{name}")
print(mmdora.generate(model, processor, {picture}, "{question}"))"""


def adapter_snippet(name: str, *, sees: bool) -> str:
    """Python code that loads an adapter from the folder `name`, onto its base, and asks it a question."""
    if not sees:
        return OF_ADAPTER.format(name=name, more="", picture="None", question="What is the capital of France?")
    more, picture = "\nfrom PIL import Image", 'Image.open("photo.jpg")'
    return OF_ADAPTER.format(name=name, more=more, picture=picture, question=QUESTION)


def snippet(name: str, folder: Path, family: Family) -> str:
    """Python code that loads a checkpoint and asks it about `photo.jpg`.

    Args:
        name: of the checkpoint, as the code gives it to `from_pretrained`.
        folder: where its files are.
        family: that of its base.
    """
    if not family.sees:
        return OF_TEXT.format(name=name)
    reader: Any = AutoProcessor.from_pretrained(folder)
    if reader.chat_template is not None and family.reads_conversations:
        return BY_PROCESSOR.format(name=name)
    text = family.render(ask(QUESTION, Image.new("RGB", (8, 8))).messages, generation_prompt=True)
    words = family.tokenizer
    started = text.startswith(tuple(filter(None, (words.bos_token, getattr(words, "cls_token", None)))))
    more = ", add_special_tokens=False" if started else ""
    way = BY_TEXT if reader.tokenizer.chat_template is None else BY_TOKENIZER
    return way.format(name=name, text=text, more=more)
