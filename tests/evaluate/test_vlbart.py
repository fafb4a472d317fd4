"""VL-BART is asked by its own prefixes, searches with beams, and reads clips as features."""

from typing import Any

import numpy as np
import pytest
import torch
from shrunken_vlbart import picture, small_vlbart

from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.evaluate.tasks import TASKS
from mmdora.prepare.record import asked
from mmdora.records.row import row_of

BEAMS, TOKENS = 3, 6


def by_hand(model: Any, processor: Any, **inputs: Any) -> str:
    """One answer, by transformers' own calls."""
    encoded = processor(**inputs)
    ids = model.generate(**encoded, num_beams=BEAMS, max_new_tokens=TOKENS, do_sample=False)
    return processor.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()


def test_two_images_and_the_first_step_of_nlvr2(tmp_path):
    """VL-T5's reading: the two answers' logits after what a target begins with, `</s> <s>`."""
    model, processor = small_vlbart("vit")
    pictures = [picture(i) for i in range(4)]
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    names = [["0.png", "1.png"], ["2.png", "3.png"], ["1.png", "3.png"]]
    texts = ["a", "both dogs are black", "there is one ~{}|"]
    records = [asked(f"a-{i}-0-0", names[i], texts[i], "true", identifier=f"a-{i}-0-0") for i in range(3)]
    rows = [row_of(record, tmp_path) for record in records]
    options: dict[str, Any] = {"batch_size": 2, "beams": BEAMS, "max_new_tokens": TOKENS}
    found = evaluate(model, processor, rows, task="nlvr2", **options)
    start, yes, no = processor.tokenizer("tf")["input_ids"][:3]  # one token a letter
    for i, row in enumerate(found.rows):
        images = [pictures[int(name[0])] for name in names[i]]
        encoded = processor(text=f"nlvr: {texts[i]}", images=[images])
        with torch.no_grad():
            logits = model(**encoded, decoder_input_ids=torch.tensor([[2, start]])).logits[0, -1]
        assert row["prediction"] == ("true" if logits[yes] > logits[no] else "false")
        assert row["prediction"] in ("true", "false")


def test_clips_as_features(tmp_path):
    model, processor = small_vlbart(None)
    clips = [torch.randn(frames, 64, generator=torch.Generator().manual_seed(frames)).numpy() for frames in (2, 4, 9)]
    np.save(tmp_path / "0.npy", clips[0])
    np.savez(tmp_path / "1.npz", features=clips[1])
    np.savez(tmp_path / "2.npz", clips[2])
    files = ["0.npy", "1.npz", "2.npz"]
    rows = [row_of(asked(i, [], "what?", "left", features=file), tmp_path) for i, file in enumerate(files)]
    options: dict[str, Any] = {"batch_size": 3, "beams": BEAMS, "max_new_tokens": TOKENS}
    found = evaluate(model, processor, rows, task=TASKS["scenes-clip-features"], **options)
    for row, clip in zip(found.rows, clips, strict=True):
        assert row["prediction"] == by_hand(model, processor, text="what? tvqa: ", features=clip)
    assert len({row["prediction"] for row in found.rows}) > 1, "all alike, so nothing was tested"
    np.savez(tmp_path / "bad.npz", a=clips[0], b=clips[1])
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for file in ("bad.npz", "pickled.npy"):
        with pytest.raises(MmdoraError, match=rf"record 9: features .*{file}: no readable array"):
            evaluate(model, processor, [row_of(asked(9, [], "what?", "left", features=file), tmp_path)])
