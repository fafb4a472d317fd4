"""Which family a model belongs to is known in `mmdora/families` and by the model's own code, and nowhere else."""

import re
from pathlib import Path

import mmdora

PACKAGE = Path(mmdora.__file__).parent
HOMES = (PACKAGE / "families", PACKAGE / "models" / "vlbart")
QUESTIONS = re.compile(
    r"\.is_encoder_decoder|pads_left|answers_apart|hasattr\([\w.]+, \"prompt\"\)|isinstance\([\w.]+, VLBart"
    r"|model_type *[!=]= *\"vl-bart\"|[\"']labels[\"']\]\.shape *[!=]="
)


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if not any(path.is_relative_to(home) for home in HOMES)]


def test_nobody_else_asks_for_the_family():
    asked = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if QUESTIONS.search(line)
    ]
    assert not asked, "\n".join(asked)


def test_the_search_finds_what_it_looks_for():
    """The patterns are those by which the question was once asked in twelve places."""
    once = [
        "if model.config.is_encoder_decoder:",
        'return not getattr(processor, "pads_left", True)',
        'if task is None or not hasattr(processor, "prompt"):',
        "self.vlbart = processor if isinstance(processor, VLBartProcessor) else None",
        'if getattr(model.config, "model_type", None) != "vl-bart"'.replace('"model_type", None)', "model_type"),
        'apart = batch["labels"].shape != batch["input_ids"].shape',
    ]
    assert all(QUESTIONS.search(line) for line in once)
    assert len(sources()) > 150
