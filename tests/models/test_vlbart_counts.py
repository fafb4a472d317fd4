"""The published parameter counts of VL-BART, from shapes alone."""

import json

import pytest
from torch import nn

from mmdora.injectors import inject
from mmdora.models.open_clip_tower import tower_config
from mmdora.models.vlbart_config import VLBartConfig
from mmdora.overview import skeleton

TOTAL = {"lora": 7_077_888, "dora": 7_077_888 + 27_648}


def adapted(folder, config, method):
    """The model with shapes only, q_proj and v_proj at rank 128, the visual embedding in full; and what trains."""
    config.save_pretrained(folder)
    model = skeleton(str(folder))
    language = {"method": method, "rank": 128, "alpha": 128, "targets": ["q_proj", "v_proj"]}
    plan = inject(model, {"projector": {"method": "full"}, "language": language})
    assert len(plan.entries) == 36
    bart = model.get_submodule("model.language_model")
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    assert sum(trained.values()) == plan.trainable
    biases = {id(p): p.numel() for name, p in bart.named_parameters() if name.endswith("bias")}
    norms = {id(m.weight): m.weight.numel() for m in bart.modules() if isinstance(m, nn.LayerNorm)}
    return plan, trained, biases, norms


@pytest.mark.parametrize(
    ("width", "method", "with_norms", "trainable", "total"),
    [
        (2048, "lora", False, 8_786_688, 148_234_752),
        (2048, "lora", True, 8_811_264, 148_234_752),  # matched with DoRA's setting; not published
        (2048, "dora", True, 8_838_912, 148_262_400),
        (512, "lora", False, 7_607_040, 147_055_104),
        (512, "dora", False, 7_634_688, 147_082_752),
    ],
)
def test_published_counts(tmp_path, width, method, with_norms, trainable, total):
    config = VLBartConfig(vision_config={"hidden_size": width})
    plan, trained, biases, norms = adapted(tmp_path, config, method)
    everything = trained | biases | (norms if with_norms else {})
    assert sum(everything.values()) == trainable
    assert plan.total == total


def test_the_tower_comes_on_top(tmp_path):
    config = VLBartConfig(vision_config=tower_config("RN101", "openai", grid=6))
    plan, trained, biases, norms = adapted(tmp_path, config, "dora")
    assert sum((trained | biases | norms).values()) == 8_838_912
    assert plan.total - plan.base_sizes["vision"] == 148_262_400
    # torchvision's resnet101 without its classifier has 42,500,160; CLIP's stem is three convolutions, not one
    assert plan.base_sizes["vision"] == 42_500_160 - (64 * 3 * 49 + 128) + (32 * 3 * 9 + 64 + 32 * 32 * 9 + 64) + (
        64 * 32 * 9 + 128
    )
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["open_clip_name"] == "RN101"
