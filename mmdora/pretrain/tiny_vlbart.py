"""Builds `tiny-vlbart` as it is before its BART is trained: architecture, tokenizer, processor, and a trained tower.

`python -m mmdora.pretrain.tiny_vlbart OUT` writes it as an ordinary checkpoint folder. The two stages of
`configs/tiny/pretrain_vlbart_*.yaml` then train everything but the tower. `make pretrain-vlbart` does all of this.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

from mmdora.data_prep.scenes import tasks
from mmdora.models.open_clip.tower import OpenClipVisionModel, tower_config
from mmdora.models.vlbart.compose import compose
from mmdora.models.vlbart.head import VLBartForConditionalGeneration
from mmdora.models.vlbart.processor import PROMPTS, VLBartProcessor, added_tokens
from mmdora.outputs.folder import check_new_folder
from mmdora.pretrain.tiny_llava import documentation
from mmdora.pretrain.tiny_vlbart_tower import train_tower

TOWER = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 2, 1], "width": 16, "head_width": 64},
}
"""The tower's config: pictures of 64 pixels, enlarged to 96, become 3 x 3 tokens of width 512.

The width is that of the features of `mmdora prep scenes --kind clip-features`.
"""

VOCABULARY, POSITIONS = 2048, 256  # Rows of the token table, VL-BART's own tokens included; positions of BART.
FRAMES = ORDER = 16  # Frames of a clip, each one visual token. A picture has 9 tokens, so 16 order embeddings suffice.
LONGEST = 48  # The most tokens of an answer: captions of three things have up to 37.
ALSO_VQA = {"pairs": "vqa: {}", "places": "vqa: {}"}
"""Tasks with the prompt of `vqa`. They are separate tasks for two reasons: all rows of a batch must have the same
number of pictures, and each task gets a share of the batches."""

SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
READ = {"questions": "vqa", "pair-questions": "pairs", "names": "caption", "clip-features": "tvqa", "places": "places"}
"""Kind of drawn data -> name of the task under which it is learned."""


def build(tower: OpenClipVisionModel, seed: int = 0) -> tuple[VLBartForConditionalGeneration, VLBartProcessor]:
    """Build the model and its processor around a trained tower; all other weights are drawn at random."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    bart = BartForConditionalGeneration(make_config(tokenizer))
    model, processor = compose(bart, tokenizer, tower.config, prompts=ALSO_VQA, order_tokens=ORDER, frames=FRAMES)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    model.generation_config.max_new_tokens = LONGEST
    processor.default_task = "vqa"
    return model, processor


def make_config(tokenizer: Any) -> BartConfig:
    """BART's config: 2.2 M parameters without the tower; no dropout, because most rows are seen only once."""
    return BartConfig(
        vocab_size=len(tokenizer),
        d_model=160,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=5,
        decoder_attention_heads=5,
        encoder_ffn_dim=448,
        decoder_ffn_dim=448,
        max_position_embeddings=POSITIONS,
        init_std=0.05,
        dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )


def make_tokenizer() -> BartTokenizer:
    """A byte-level BPE tokenizer like BART's, trained on the drawn data and on Python's own documentation.

    Working on bytes, the tokenizer can encode any text.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(added_tokens(ORDER)),
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]  # The class needs tuples, though it declares list[str].
    return BartTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=POSITIONS)


def _corpus() -> Iterator[str]:
    for kind, task in READ.items():
        if kind == "places":  # This kind has no words that the other kinds lack.
            continue
        for number in range(800):
            for question in tasks.draw_of(kind, "train", 0, number).asked:
                yield {**PROMPTS, **ALSO_VQA}[task].replace("{}", question.text)
                yield question.answer
    yield from documentation()


def louder_order(folder: Path, std: float = 0.8) -> None:
    """Draw the order embeddings of the checkpoint in `folder` anew, with the scale of the visual tokens.

    The order embeddings are rows of the token table and are added to the visual tokens. The table is initialised with a
    tenth of the visual tokens' scale, and with such small order embeddings the first stage learned nothing about
    places. Large rows would also give their own tokens large logits, so BART's bias of the logits forbids these tokens
    in answers.
    """
    model = VLBartForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[-ORDER:].normal_(std=std)
    model.final_logits_bias[:, -ORDER:] = -1e3
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny-vlbart as it is before it learns to speak.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tower-steps", type=int, default=3000, help="0 leaves the tower untrained")
    parser.add_argument("--louder-order", action="store_true", help="of the checkpoint in OUT, between the two stages")
    options = parser.parse_args()
    if options.louder_order:
        return louder_order(options.out)
    check_new_folder(options.out)
    torch.manual_seed(0)
    tower = OpenClipVisionModel(tower_config(TOWER))
    scores = train_tower(tower, steps=options.tower_steps) if options.tower_steps else {}
    for part in build(tower):
        part.save_pretrained(options.out)
    (options.out / "tower.json").write_text(json.dumps(scores), encoding="utf-8")
    print(scores)


if __name__ == "__main__":
    main()
