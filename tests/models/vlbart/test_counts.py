"""The published parameter counts of VL-BART, from shapes alone."""

import json
from pathlib import Path

import pytest

from mmdora.adapt.inject import inject
from mmdora.config import load_config
from mmdora.models.base import skeleton
from mmdora.models.open_clip.tower import tower_config
from mmdora.models.vlbart.config import VLBartConfig

CONFIGS = Path(__file__).parents[3] / "configs"


def planned(folder, config, name):
    """The plan of a shipped config on a model with shapes only, and what it leaves trainable."""
    config.save_pretrained(folder)
    model = skeleton(str(folder))
    adapt = load_config(CONFIGS / f"vlbart_{name}.yaml").adapt
    plan = inject(model, adapt)
    assert len(plan.entries) == 36 and {entry.scaling for entry in plan.entries} == {1.0}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.trainable
    return plan


@pytest.mark.parametrize(
    ("width", "name", "trainable", "total"),
    [
        (2048, "image_lora_published", 8_786_688, 148_234_752),
        (2048, "image_lora", 8_811_264, 148_234_752),  # matched with DoRA's setting; not published
        (2048, "image_dora", 8_838_912, 148_262_400),
        (512, "video_lora", 7_607_040, 147_055_104),
        (512, "video_dora", 7_634_688, 147_082_752),
    ],
)
def test_published_counts(tmp_path, width, name, trainable, total):
    config = VLBartConfig(vision_config={"hidden_size": width})
    plan = planned(tmp_path, config, name)
    assert (plan.trainable, plan.total) == (trainable, total)


def test_the_tower_comes_on_top(tmp_path):
    config = VLBartConfig(vision_config=tower_config("RN101", "openai", grid=6))
    plan = planned(tmp_path, config, "image_dora")
    assert plan.trainable == 8_838_912
    assert plan.total - plan.base_sizes["vision"] == 148_262_400
    # torchvision's resnet101 without its classifier has 42,500,160; CLIP's stem is three convolutions, not one
    assert plan.base_sizes["vision"] == 42_500_160 - (64 * 3 * 49 + 128) + (32 * 3 * 9 + 64 + 32 * 32 * 9 + 64) + (
        64 * 32 * 9 + 128
    )
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["open_clip_name"] == "RN101"
