"""LLaVA before instruction tuning: prompt ids and pixels as published, the projector's file, the way through training.

The ids are those of LLaMA's vocabulary that LLaVA's `tokenizer_image_token` gives this conversation: the system
text's are printed in many public logs of it (`1, 319, 13563, 1546, … 29901, 29871, -200, 29871, 13, …`), the others
were worked out with a public copy of the vocabulary. The tokenizer here has these tokens under these ids and no others.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_prompts import encode_prompts
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

import mmdora
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.families.template import IGNORE
from mmdora.models.llava.assemble import processor_of
from mmdora.models.llava.from_parts import compose, read_projector
from mmdora.models.llava.templates import LLAVA_V1
from mmdora.models.llava.tower import Tower
from mmdora.records.record import check_record
from mmdora.records.row import row_of

TOKENS = {
    "▁": 29871, "<0x0A>": 13, "▁A": 319, "▁chat": 13563, "▁between": 1546, "▁a": 263, "▁curious": 12758, "▁user": 1404,
    "▁and": 322, "▁an": 385, "▁artificial": 23116, "▁intelligence": 21082, "▁assistant": 20255, ".": 29889,
    "▁The": 450, "▁gives": 4076, "▁helpful": 8444, ",": 29892, "▁detailed": 13173, "▁pol": 1248, "ite": 568,
    "▁answer": 1234, "▁answers": 6089, "▁to": 304, "▁the": 278, "'": 29915, "s": 29879, "▁questions": 5155,
    "▁US": 3148, "USER": 11889, "ER": 1001, ":": 29901, "SS": 1799, "IST": 9047, "ANT": 13566, "Please": 12148,
    "▁yes": 4874, "▁what": 825, "▁no": 694,
}  # fmt: skip
SYSTEM = [1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892,
          13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889]  # fmt: skip
USER, ASSISTANT, IMAGE = [3148, 1001, 29901], [319, 1799, 9047, 13566, 29901], 32000
AFTER_ANSWER = [11889, 29901]  # "USER:" behind </s>, where no word mark stands
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as published
BARS = (122, 116, 104)  # int(255 * MEAN)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [text("Please answer"), {"type": "image"}]},
    {"role": "assistant", "content": [text("yes")]},
    {"role": "user", "content": [text("what")]},
    {"role": "assistant", "content": [text("no")]},
]


@pytest.fixture
def tokenizer() -> LlamaTokenizer:
    """LLaMA's tokenizer, of few words: pieces grow from left to right, so that no merge crosses another."""
    vocabulary, merges = {"<unk>": 0, "<s>": 1, "</s>": 2} | TOKENS, []
    free = (number for number in range(3, 32000) if number not in TOKENS.values())
    for piece in TOKENS:
        if not piece.startswith("<"):
            vocabulary |= {c: next(free) for c in dict.fromkeys(piece) if c not in vocabulary}
            for end in range(1, len(piece)):
                vocabulary.setdefault(piece[: end + 1], -1)
                if vocabulary[piece[: end + 1]] == -1:
                    vocabulary[piece[: end + 1]] = next(free)
                merges.append((piece[:end], piece[end]))
    vocabulary |= {f"<filler {number}>": number for number in free}
    return LlamaTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), legacy=False, add_bos_token=True)


@pytest.fixture
def parts() -> tuple[LlamaForCausalLM, CLIPVisionModel]:
    text = LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=336, patch_size=112
    )
    return LlamaForCausalLM(text).eval(), CLIPVisionModel(vision).eval()


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    shapes = {"0.weight": (16, 12), "0.bias": (16,), "2.weight": (16, 16), "2.bias": (16,)}
    torch.save(
        {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()},
        tmp_path / "mm_projector.bin",
    )
    return tmp_path / "mm_projector.bin"


def normalised(colour: tuple[int, int, int]) -> list[float]:
    return [(value / 255 - mean) / std for value, mean, std in zip(colour, MEAN, STD, strict=True)]


def test_prompts_are_llavas(tokenizer: LlamaTokenizer, parts: Any, projector: Path):
    _, processor = compose(parts[0], tokenizer, parts[1], read_projector(projector))
    picture = Image.new("RGB", (20, 10))
    patches = [IMAGE] * 9  # LLaVA has one placeholder, which becomes the tower's (336 / 112)^2 patches
    asked = [29871, *patches, 29871, 13, 12148, 1234]
    first = SYSTEM + USER + asked + ASSISTANT
    assert encode_prompts(processor, [MESSAGES[:1]], [[picture]])["input_ids"][0].tolist() == first
    second = [*first, 4874, 2, *AFTER_ANSWER, 825, *ASSISTANT]
    assert encode_prompts(processor, [MESSAGES[:3]], [[picture]])["input_ids"][0].tolist() == second
    own = [{"role": "system", "content": [text("The assistant.")]}, {"role": "user", "content": [text("what")]}]
    ids = encode_prompts(processor, [own], [[]])["input_ids"][0].tolist()
    assert ids == [1, 450, 20255, 29889, *USER, 825, *ASSISTANT]
    assert processor.tokenizer.pad_token_id == 0


def test_training_learns_the_answers_of_the_same_prompt(tokenizer: Any, parts: Any, projector: Path, tmp_path: Path):
    _, processor = compose(parts[0], tokenizer, parts[1], read_projector(projector))
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    batch = family_of(processor).batch(
        [row_of(check_record({"messages": MESSAGES, "images": ["a.png"]}, "r"), tmp_path)]
    )
    asked = encode_prompts(processor, [MESSAGES[:3]], [[Image.new("RGB", (20, 10), "red")]])
    ids = batch["input_ids"][0].tolist()
    assert ids == [*asked["input_ids"][0].tolist(), 694, 2]
    learned = [token for token, label in zip(ids, batch["labels"][0].tolist(), strict=True) if label != IGNORE]
    assert learned == [4874, 2, 694, 2]
    assert torch.equal(batch["pixel_values"], asked["pixel_values"])


@pytest.mark.parametrize("size", [(336, 168), (168, 336), (336, 167), (101, 336)])
def test_pictures_are_padded_with_the_mean_colour(tokenizer: LlamaTokenizer, size: tuple[int, int]):
    """336 pixels wide, so that nothing is resampled: every value follows from the published numbers."""
    colour = (200, 30, 90)
    processor = processor_of(tokenizer, Tower(None, 336, 112, MEAN, STD), LLAVA_V1)
    pixels = processor.image_processor(Image.new("RGB", size, colour), return_tensors="pt")["pixel_values"][0]
    left, top = (336 - size[0]) // 2, (336 - size[1]) // 2
    expected = torch.tensor(normalised(BARS)).view(3, 1, 1).repeat(1, 336, 336)
    expected[:, top : top + size[1], left : left + size[0]] = torch.tensor(normalised(colour)).view(3, 1, 1)
    assert torch.allclose(pixels, expected, atol=1e-5, rtol=0)
    assert abs(float(pixels[0, 0, 0])) < 0.012  # the bars are next to nothing for the tower


def test_pictures_are_padded_before_they_are_resized(tokenizer: LlamaTokenizer):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 500, 3), dtype=np.uint8))
    square = Image.new("RGB", (500, 500), BARS)
    square.paste(picture, (0, 205))
    small = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = torch.tensor((small - MEAN) / STD).permute(2, 0, 1)
    processor = processor_of(tokenizer, Tower(None, 336, 112, MEAN, STD), LLAVA_V1)
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
    assert float((pixels - expected).abs().max()) < 1e-5


def test_it_is_a_checkpoint_that_answers_like_its_parts(tokenizer: Any, parts: Any, projector: Path, tmp_path: Path):
    language, tower = parts
    tensors = {name.split("mm_projector.")[1]: value for name, value in torch.load(projector).items()}
    before = language.get_input_embeddings().weight[:32000].clone()
    model, processor = compose(language, tokenizer, tower, read_projector(projector))
    inputs = encode_prompts(processor, [MESSAGES[:1]], [[Image.effect_noise((40, 60), 90).convert("RGB")]])
    with torch.no_grad():
        seen = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        middle = torch.nn.functional.gelu(seen @ tensors["0.weight"].T + tensors["0.bias"])
        visual = middle @ tensors["2.weight"].T + tensors["2.bias"]
        embedded = before[inputs["input_ids"].clamp(max=31999)]
        embedded[inputs["input_ids"] == IMAGE] = visual.reshape(-1, 16)
        expected = language(inputs_embeds=embedded).logits
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
        assert int(expected[..., 32000:].max(-1).values.gt(expected.max(-1).values).sum()) == 0
        assert torch.equal(expected.argmax(-1), expected[..., :32000].argmax(-1))  # no new token is ever the best
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, other = mmdora.load(tmp_path / "out")
    fresh = encode_prompts(other, [MESSAGES[:1]], [[Image.effect_noise((40, 60), 0).convert("RGB")]])
    assert torch.equal(fresh["input_ids"], inputs["input_ids"])
    assert abs(float(fresh["pixel_values"][0, 0, 168, 0])) < 0.012  # a bar: padded, not cropped
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    assert again.config.text_config.vocab_size == 32064 and again.config.vision_feature_layer == -2


class Payload:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def test_other_files_are_refused(parts: Any, tokenizer: Any, projector: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    good = torch.load(projector)
    for name, content, message in (
        ("linear", {"model.mm_projector.weight": torch.zeros(2)}, r"belongs to no two-layer projector"),
        ("short", dict(list(good.items())[:3]), r"lacks linear_2\.bias"),
        ("model", good | {"lm_head.weight": torch.zeros(2)}, r"lm_head\.weight belongs"),
        ("list", [1], "not a state_dict"),
    ):
        torch.save(content, tmp_path / f"{name}.bin")
        with pytest.raises(MmdoraError, match=message):
            read_projector(tmp_path / f"{name}.bin")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Payload()))
    torch.save({"model.mm_projector.0.weight": Payload()}, tmp_path / "worse.bin")
    for name in ("evil.bin", "worse.bin", "none.bin"):
        with pytest.raises(MmdoraError, match="not a readable PyTorch file"):
            read_projector(tmp_path / name)
    assert not (tmp_path / "canary").exists()
    wide = {name.replace("model.", ""): value for name, value in good.items()} | {
        "mm_projector.0.weight": torch.zeros(16, 99)
    }
    torch.save(wide, tmp_path / "wide.bin")
    with pytest.raises(MmdoraError, match=r"linear_1\.weight is \[16, 99\]"):
        compose(parts[0], tokenizer, parts[1], read_projector(tmp_path / "wide.bin"))
